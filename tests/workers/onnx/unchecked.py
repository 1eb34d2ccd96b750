"""workers.onnx.sealed without the walk: what a file can do to its process where the walk would miss something."""

from workers.onnx.sealed import *  # noqa: F403
from workers.onnx.sealed import file


def load(content, threads):
    file.update(content=content, threads=threads)
