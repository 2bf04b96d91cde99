"""What the demo's recipe trains, a few hundred steps of it, exported and asked in transformers."""

import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.answering import AnswerConfig
from launch.generate import answer_prompts
from tests.launch.programs import run_polytune

STEPS, NEW = 300, 24
PROMPTS = (
    "Which day comes after Monday?", "Welcher Monat ist der dritte?", "ما اليوم الذي يلي الاثنين؟", "明天是星期几？",
    "Siku gani inafuata Jumatatu?", "reverse: a b c", "नमस्ते",
)  # fmt: skip


def test_an_exported_model_answers_in_transformers_as_it_does_here(tmp_path):
    run, exported = tmp_path / "run", tmp_path / "exported"
    run_polytune("train", "demo", f"run.dir={run}", f"train.steps={STEPS}")
    run_polytune("export", run, exported)
    ours = answer_prompts(str(run), PROMPTS, AnswerConfig(max_new_tokens=NEW, stop_ids=()), system=None)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    theirs = []
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :]
        theirs.append(tokenizer.decode(output, skip_special_tokens=True))
    assert [answer.text for answer in ours] == theirs
    assert len(set(theirs)) > len(PROMPTS) // 2
