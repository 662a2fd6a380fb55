"""The exceptions of onnxprune: one tree, each class with the exit code the command line ends with."""

from __future__ import annotations


class OnnxPruneError(Exception):
    """Base of every error a user can cause or meet. The message says what, where, and what to do."""

    exit_code = 1


class UsageError(OnnxPruneError):
    """An option, an argument or an input array does not fit (exit code 2)."""

    exit_code = 2


class OutputError(UsageError):
    """The output cannot be written: folder, permission, space, or it exists already (exit code 2)."""


class ModelError(OnnxPruneError):
    """The model cannot be loaded, is damaged, or uses something unsupported (exit code 3)."""

    exit_code = 3


class NothingToPruneError(OnnxPruneError):
    """No group can be pruned, or the target cannot be reached (exit code 4)."""

    exit_code = 4


class NotFasterError(OnnxPruneError):
    """The pruned model was measured and is not faster than the original; nothing was written (exit code 4)."""

    exit_code = 4


class VerificationError(OnnxPruneError):
    """The pruned model is not what it must be; nothing was written (exit code 5)."""

    exit_code = 5


class WorkerError(OnnxPruneError):
    """A child process crashed or ran past its time limit (exit code 1)."""


def runs_nowhere(model: str, failure: object) -> ModelError:
    """The error of a model that runs on none of the inputs made up for it; `failure`: the last of its own errors."""
    return ModelError(
        f"{model} runs at no input size tried: {failure}; give sizes with --input-shape NAME:1,3,224,224, or real "
        "inputs with --calibration where their values matter"
    )
