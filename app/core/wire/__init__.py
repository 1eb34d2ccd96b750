"""What travels over HTTP as JSON: requests (unknown fields are refused) and responses."""

from app.core.wire.datasets import Dataset, DatasetImage, DatasetImages
from app.core.wire.jobs import AcceptedTraining, Alarm, Curves, Forecast, Job, Point, Progress, Snapshot, Snapshots
from app.core.wire.models import ImportedCard, Model, ModelDetail, Version
from app.core.wire.perturbations import Perturbation, PerturbationRequest
from app.core.wire.quizzes import Quiz, QuizAnswer, QuizVerdict, Tally
from app.core.wire.service import Fault, Health, Key, KeyRequest, Me, NewKey, Problem
from app.core.wire.submissions import (
    CheckedTraining,
    DefenceRequest,
    DerivedRequest,
    Fork,
    OracleAttackRequest,
    Priced,
    ReportRequest,
    TrainingRequest,
)
from app.core.wire.terms import Layout, Links, ModelReference, Name, Page, Request, Seed

__all__ = [
    "AcceptedTraining",
    "Alarm",
    "CheckedTraining",
    "Curves",
    "Dataset",
    "DatasetImage",
    "DatasetImages",
    "DefenceRequest",
    "DerivedRequest",
    "Fault",
    "Forecast",
    "Fork",
    "Health",
    "ImportedCard",
    "Job",
    "Key",
    "KeyRequest",
    "Layout",
    "Links",
    "Me",
    "Model",
    "ModelDetail",
    "ModelReference",
    "Name",
    "NewKey",
    "OracleAttackRequest",
    "Page",
    "Perturbation",
    "PerturbationRequest",
    "Point",
    "Priced",
    "Problem",
    "Progress",
    "Quiz",
    "QuizAnswer",
    "QuizVerdict",
    "ReportRequest",
    "Request",
    "Seed",
    "Snapshot",
    "Snapshots",
    "Tally",
    "TrainingRequest",
    "Version",
]
