"""Requests as arrays, gathered from all processes."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt32

from sdistill.distributed.processes import first_row, gathered_rows
from sdistill.engine.sampling import SamplingArrays
from sdistill.engine.types import Request


class Jobs(NamedTuple):
    """Requests as arrays, of all processes."""

    prompts: Int[np.ndarray, "N P"]
    prompt_lengths: Int[np.ndarray, " N"]
    problems: UInt32[np.ndarray, " N"]
    samples: Int[np.ndarray, " N"]
    limits: Int[np.ndarray, " N"]
    settings: SamplingArrays


def jobs_of(requests: Sequence[Request], max_prompt: int, max_response: int) -> tuple[Jobs, slice]:
    """All processes' requests, one process after the other, and where the own ones are."""
    prompts = np.zeros((len(requests), max_prompt), np.int32)
    for row, request in zip(prompts, requests, strict=True):
        row[: len(request.prompt)] = request.prompt
    jobs = Jobs(
        prompts,
        np.asarray([len(request.prompt) for request in requests], np.int32),
        np.asarray([zlib.crc32(request.problem.encode()) for request in requests], np.uint32),
        np.asarray([request.sample for request in requests], np.int32),
        np.asarray([request.limit or max_response for request in requests], np.int32),
        SamplingArrays.of([request.sampling for request in requests]),
    )
    start = first_row(len(requests))
    return gathered_rows(jobs, len(requests)), slice(start, start + len(requests))
