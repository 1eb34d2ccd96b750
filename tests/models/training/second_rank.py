"""Trainings on two CPU devices: the tests are the first rank, this program is the second one."""

import json
import sys

import torch
import torch.distributed as dist

from models.registry import families
from models.seeds import derive
from models.training.loop import Training
from models.training.parallel import ParallelTraining, for_ranks
from models.training.ranks import Ranks
from tests.models.data import for_family

CPU = torch.device("cpu")


def new_training(kind: type[Training], name: str, config: dict, size: int = 2) -> Training:
    """A training of the family `name` on random images (8, 8); `config` may have `accumulate`."""
    family, accumulate = families()[name], config.get("accumulate", 1)
    config = {field: value for field, value in config.items() if field != "accumulate"}
    spec, train, validation = for_family(family, count=48)
    torch.manual_seed(derive(0, "init"))
    settings = for_ranks(family.complete_config({"effort": "full"} | config, spec), size)
    model = family(settings, spec)
    model.accumulate = accumulate
    return kind(model, train, validation)


def parameters(training: Training) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in training.family.parameters()]


def main() -> None:
    """Joins the first rank at the port in argv and follows each training that is written to stdin, until its end."""
    store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), 2, is_master=False)
    ranks = Ranks.join(store, 1, 2, CPU)
    for line in sys.stdin:
        training = new_training(ParallelTraining, *json.loads(line))
        training.join(ranks)
        training.follow()
        ranks.collect(parameters(training))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
