"""A small TFDS data set, prepared by TFDS itself without TensorFlow: `python tfds_sample.py FOLDER`."""

import sys

import numpy as np
import tensorflow_datasets as tfds

EXAMPLE = {
    "q": "שאלה 3",
    "n": 3,
    "label": 1,
    "messages": {"role": ["user", "assistant"], "content": ["你好", "x"]},
    "vector": [1.5, -2.0],
    "pair": {"en": "a", "sw": "b"},
    "flag": True,
    "many": ["x", ""],
}


def prepare(root):
    class Tiny(tfds.core.GeneratorBasedBuilder):
        """Thirty rows and four."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "q": tfds.features.Text(),
                "n": np.int32,
                "label": tfds.features.ClassLabel(names=["a", "b"]),
                "messages": tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()}),
                "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                "pair": tfds.features.Translation(["en", "sw"]),
                "flag": np.bool_,
                "many": tfds.features.Sequence(tfds.features.Text()),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {"train": self._generate_examples(30), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "x"}]
                yield i, EXAMPLE | {"q": f"שאלה {i}", "n": i, "label": i % 2, "messages": messages}

    Tiny(data_dir=root, file_format="array_record").download_and_prepare()


if __name__ == "__main__":
    prepare(sys.argv[1])
