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
    """A training of the family `name` on random images (8, 8)."""
    family = families()[name]
    spec, train, validation = for_family(family, count=48)
    torch.manual_seed(derive(0, "init"))
    settings = for_ranks(family.complete_config({"effort": "full"} | config, spec), size)
    return kind(family(settings, spec), train, validation)


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
