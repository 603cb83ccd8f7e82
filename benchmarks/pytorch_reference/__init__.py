"""Our optimisation step as one would write it in PyTorch: what the JAX step is timed against.

It starts from the parameters of our generator, takes the same steps (tests/test_pytorch_reference.py),
and shares no code with ours but the configuration and its constants.
"""

from benchmarks.pytorch_reference.generator import from_jax
from benchmarks.pytorch_reference.step import FORMS, CompilerError, Form, Reference, State

__all__ = ["FORMS", "CompilerError", "Form", "Reference", "State", "from_jax"]
