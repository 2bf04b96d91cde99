"""A batch has one digest, in however many shares it came."""

import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from toy import lay_out, make_examples, pack_pairs

from train.digests import digest_share, join_crcs, join_digests
from train.metrics import describe_batch

BATCH = lay_out(pack_pairs(make_examples(16, seed=5)))


@given(st.integers(1, 70).flatmap(lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=1)))
def test_crcs_of_pieces_join_to_that_of_the_whole(pieces):
    joined = join_crcs(map(zlib.crc32, pieces), size_bytes=len(pieces[0]))
    assert joined == zlib.crc32(b"".join(pieces))


def test_shares_laid_end_to_end_have_the_digest_of_the_batch():
    whole = describe_batch(BATCH, first_row=0, num_languages=4).digest
    for count in (1, 2, 4, 8):
        shares = [type(BATCH)(*(np.split(field_BT, count)[index] for field_BT in BATCH)) for index in range(count)]
        found = join_digests(list(map(digest_share, shares)), share_bytes=shares[0].tokens_BT.nbytes)
        assert found == whole
    swapped = join_digests([digest_share(share) for share in shares[::-1]], share_bytes=shares[0].tokens_BT.nbytes)
    assert swapped != whole
