"""Models that are sharded over processes are refused, with the way out; here rank 0 of two."""

import another_python


def test_fully_sharded_data_parallel() -> None:
    runs("""
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, ShardingStrategy

def wrapped(strategy):
    return FSDP(
        make(), use_orig_params=True, device_id=torch.device("cpu"), sharding_strategy=strategy
    )

model = wrapped(ShardingStrategy.FULL_SHARD)
for include in (None, "*"):
    refused(lambda: lampfast.prune(model, 0.5, include=include), "summon_full_params")
pairs = [(model.module[0], "weight")]
refused(lambda: lampfast.prune(pairs, 0.5), "summon_full_params")
with FSDP.summon_full_params(model):
    assert lampfast.prune(model, 0.5).numel == 96
model = wrapped(ShardingStrategy.NO_SHARD)
assert lampfast.prune(model, 0.5).numel == 96
""")


def test_fully_shard() -> None:
    runs("""
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

model = make()
fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params={model[2].weight})
model(torch.randn(2, 8))
refused(lambda: lampfast.prune(model, 0.5), "before fully_shard")
assert lampfast.prune(model, 0.5, include="2.weight").numel == 32
""")


def runs(program: str) -> None:
    done = another_python.run("-c", SETTING + program)
    assert not done.returncode, done.stderr


SETTING = """
import torch, warnings
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
import lampfast

warnings.simplefilter("ignore")  # torch's, of what it is about to drop
distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())

def make():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

def refused(call, word):
    try:
        call()
    except (TypeError, ValueError) as error:
        assert word in str(error) and "layer '" in str(error), error
    else:
        raise AssertionError("it was not refused")
"""
