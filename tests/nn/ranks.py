"""One rank of the two-process test: ``ranks.py FOLDER RANK`` writes what it has seen to ``FOLDER/RANK.pt``."""

import copy
import datetime
import sys
from pathlib import Path

import torch
from torch import distributed, nn

import fastq
from fastq.nn import LSQ, ChannelError, DirectLinear, DirectWeight, open_deltas


def batch(rank, shape=(6, 4, 8)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)) * (1 + rank) + rank


def first_batches(rank):
    """Quantizers after their first batch, a different one on each rank."""
    seen = {}
    for case, where in (("tensor", {}), ("axis", {"axis": 1}), ("offset", {"offset": True})):
        q, x = LSQ(4, init="lsq+", shape=(4,) if "axis" in where else (1,), **where), batch(rank)
        q(x)
        seen[case] = {"x": x, "state": q.state_dict(), "where": where}
    q, x = LSQ(4, signed=None), batch(rank).abs() * (1 if rank == 0 else -1)
    q(x)
    seen["sign"] = {"x": x, "state": q.state_dict(), "range": (q.qmin, q.qmax)}
    q, x = LSQ(4), batch(rank)[:rank]
    q(x)
    seen["empty"] = {"x": x, "state": q.state_dict()}
    q = LSQ(4)
    q(batch(rank)[:0])
    seen["none"] = q.state_dict()
    return seen


def train(rank):
    """A prepared model in DDP, built from different weights on each rank, two steps on different batches."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    fastq.prepare(model, fastq.recipes.lsq(weight_bits=4, activation_bits=4))
    prepared = {"weight": model[2].weight.detach().clone(), "step": model[2].weight_quantizer.step.detach().clone()}
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {}
    for step in range(2):
        loss = wrapped(batch(rank + 2 * step, (16, 8))).square().mean()
        before = before or copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": float(loss), "before": before, "after": model.state_dict(), "prepared": prepared}


def train_codes(rank):
    """A network whose weights are codes, in DDP, different ones on each rank at first; SGD through a DirectOptimizer."""
    torch.manual_seed(rank)
    model = nn.Sequential(
        DirectLinear.from_float(nn.Linear(8, 6), DirectWeight(3)),
        nn.ReLU(),
        DirectLinear.from_float(nn.Linear(6, 3), DirectWeight(2, "basis")),
    )
    first = model[0].direct.codes.clone()
    with open_deltas(model):
        wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = fastq.DirectOptimizer(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), model)
    start = copy.deepcopy(model.state_dict())
    for step in range(4):
        loss = wrapped(batch(rank + 2 * step, (16, 8))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": float(loss), "first": first, "start": start, "after": model.state_dict()}


def channel_errors(rank):
    """A step in closed form over batches of other sizes on each rank, the last one empty on rank 0."""
    q = ChannelError(4, momentum=0.5)
    batches = [batch(rank), batch(rank + 2)[: 4 - rank], batch(rank)[: 6 * rank]]
    steps = []
    for x in batches:
        q(x)
        steps.append(q.step.detach().clone())
    return {"batches": batches, "steps": steps}


def main(folder, rank):
    store = (Path(folder) / "store").as_uri()
    wait = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=wait)
    seen = first_batches(rank)
    seen["ddp"] = train(rank)
    seen["codes"] = train_codes(rank)
    seen["channels"] = channel_errors(rank)
    torch.save(seen, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
