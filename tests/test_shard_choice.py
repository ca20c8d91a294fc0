"""A pass could wait for devices that it does not need, or run out of the memory of those it has."""

from __future__ import annotations

import pytest

from cluster.activations.block_plan import LayerBytes, ModelBytes
from cluster.activations.pass_placement import divide_cpus
from cluster.activations.shard_choice import PassSize, check_shard, choose_shards, count_blocks
from storage.errors import UserError

GB = 10**9
SIZE = PassSize(sentences=1000, budget=1000)


def make_model(layers: int = 16, embeddings: int = 0) -> ModelBytes:
    """Layers with 1 GB of weights and 0.5 GB of pooled values of the sentences."""
    return ModelBytes([LayerBytes(GB, 500_000)] * layers, embeddings * GB, token=1000)


_NEEDED = "weights and pooled values (24.0 GB)"


@pytest.mark.parametrize(
    ("memory", "devices", "shards", "reason"),
    [
        (40, 4, 1, "fit a device with 40.0 GB"),
        (20, 4, 2, "do not fit a device with 20.0 GB, but fit a pipeline of 2"),
        (
            *(20, 1, 1),
            "do not fit a device with 20.0 GB: one device takes 2 blocks of layers in turn",
        ),
        (
            *(5, 4, 1),
            "do not fit 4 devices with 5.0 GB each: one device takes 8 blocks of layers in turn",
        ),
    ],
)
def test_the_fewest_devices_that_hold_the_model_are_used(
    memory: int, devices: int, shards: int, reason: str
) -> None:
    """A pipeline where one device is enough, or that does not fit, or fewer than there are."""
    choice = choose_shards(make_model(), SIZE, memory * GB, devices)
    assert choice == (shards, f"{_NEEDED} {reason}")


def test_a_model_that_cannot_be_divided_has_one_shard() -> None:
    """A pipeline that is refused, though one device could be tried."""
    assert choose_shards(make_model(), SIZE, 20 * GB, 4, is_divisible=False).shards == 1


def test_only_the_first_shard_has_the_embeddings() -> None:
    """Shards that are counted with weights that they do not load."""
    model = make_model(embeddings=8)
    assert count_blocks(model, range(8), SIZE, 20 * GB) == 2
    assert count_blocks(model, range(8, 16), SIZE, 20 * GB) == 1
    assert choose_shards(model, SIZE, 20 * GB, 2).shards == 1
    assert choose_shards(model, SIZE, 20 * GB, 3).shards == 3


def test_a_shard_that_does_not_fit_is_refused_before_it_is_loaded() -> None:
    """Memory that runs out after an hour."""
    check_shard(make_model(), range(8, 16), SIZE, 20 * GB)
    message = (
        r"^the shard with layers 0 to 15: its weights and its pooled values of 1,000 sentences "
        r"\(24.0 GB\) do not fit 20.0 GB; use more shards, or shards: 1, which takes blocks of layers "
        r"in turn$"
    )
    with pytest.raises(UserError, match=message):
        check_shard(make_model(), range(16), SIZE, 20 * GB)


def test_all_cores_are_divided_among_the_shards() -> None:
    """Cores that idle, or shards that no node can take."""
    assert divide_cpus([8], 1) == 8
    assert divide_cpus([8], 3) == 2
    assert divide_cpus([8, 8], 2) == 8
    assert divide_cpus([8, 2], 2) == 4
    assert divide_cpus([8, 2], 5) == 2
    assert divide_cpus([2, 0], 3) == 0
    assert divide_cpus([], 1) == 0
