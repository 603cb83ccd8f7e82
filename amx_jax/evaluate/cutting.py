"""A classifier cut in two at an activation, for derivatives in it.

``apply`` only returns its activations. Its program (jaxpr) says where each is made and who uses it, so
that nobody has to write a classifier for the sake of its derivatives.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from amx_jax.classifiers.classifier import Apply, Params
from amx_jax.errors import ClassifierError

Values = dict[Any, Any]  # of a program's variables
CALLS = ("jit", "pjit", "checkpoint", "remat2")  # primitives that run a program of their own
# Primitives that only rearrange, or give another type: what an activation may pass on its way out.
VIEWS = ("squeeze", "reshape", "transpose", "broadcast_in_dim", "slice", "rev", "convert_element_type")


def cut(
    apply: Apply, params: Params, image: Array, stage: str
) -> tuple[Array, Callable[[Array], Array]]:
    """A classifier in two parts, before and after an activation: ``logits = rest(activation)``.

    The equations of its program are kept as they are, with their custom derivatives.

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        image: normalised, ``(H, W, C)``.
        stage: whose activation.

    Returns:
        The activation, and what makes the logits of one of its shape.

    Raises:
        ClassifierError: no such stage, or one that the logits do not depend on.

    Examples:
        >>> import jax.numpy as jnp
        >>> def apply(params, image):
        ...     features = jnp.sin(image).sum(axis=(0, 1))
        ...     return 10 * features, {"features": features}
        >>> activation, rest = cut(apply, None, jnp.zeros((2, 2, 3)), "features")
        >>> activation.tolist(), rest(activation + 1).tolist()
        ([0.0, 0.0, 0.0], [10.0, 10.0, 10.0])
    """
    program = _trace(apply, params, image)
    if stage not in program.outputs:
        raise ClassifierError(
            f"found no activation {stage}, expected one of "
            f"{', '.join(program.outputs) or 'none: apply returns only logits'}"
        )
    source, views = program.source(stage)
    if source is None:
        raise ClassifierError(
            f"stage {stage}: found logits that do not depend on the activation that is returned, "
            "expected one that the classifier goes on with"
        )
    split = program.made_at(source)
    before = program.run(program.equations[:split], program.inputs)

    def view(value: Array) -> Array:
        return program.run(views, {**before, source: value})[program.outputs[stage]]

    def rest(activation: Array) -> Array:
        # What rearranges is undone by its transpose.
        (value,) = jax.linear_transpose(view, before[source])(activation)
        return program.run(program.equations[split:], {**before, source: value})[program.logits]

    return view(before[source]), rest


def last_image_stage(apply: Apply, params: Params, image: Array | jax.ShapeDtypeStruct) -> str:
    """The stage computed last of those with an activation ``(h, w, channels)`` of several places.

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        image: normalised, ``(H, W, C)``; only its shape matters.

    Returns:
        The stage's name.

    Raises:
        ClassifierError: there is none.

    Examples:
        >>> def apply(params, image):
        ...     first = jax.nn.relu(image)
        ...     second = first[::2, ::2]
        ...     return second.mean(axis=(0, 1)), {"a": second, "b": first}
        >>> last_image_stage(apply, None, jax.ShapeDtypeStruct((4, 4, 3), "float32"))
        'a'
    """
    program = _trace(apply, params, image)
    found = {}
    for stage, variable in program.outputs.items():
        shape = variable.aval.shape
        source, _ = program.source(stage)
        if source is not None and len(shape) == 3 and shape[0] * shape[1] > 1:
            found[stage] = program.made_at(source)
    if not found:
        shapes = (f"{stage} {variable.aval.shape}" for stage, variable in program.outputs.items())
        raise ClassifierError(
            f"found the activations {', '.join(shapes) or 'none'}, expected one that is an image "
            "(h, w, channels) and that the logits depend on"
        )
    return max(found, key=lambda stage: found[stage])


class _Program(NamedTuple):
    """The equations of a classifier, and the values of what they start from."""

    jaxpr: Jaxpr
    inputs: Values
    logits: Any
    outputs: dict[str, Any]  # the variable of each stage

    @property
    def equations(self) -> list[JaxprEqn]:
        return self.jaxpr.eqns

    def made_at(self, variable: Any) -> int:
        """How many equations there are up to the one that makes a variable; 0 for an input."""
        places = (n for n, eqn in enumerate(self.equations, start=1) if variable in eqn.outvars)
        return next(places, 0)

    def source(self, stage: str) -> tuple[Any, list[JaxprEqn]]:
        """The variable with a stage's values that the logits depend on, and what rearranges it.

        A model of batches goes on with ``(1, h, w, channels)`` and returns the only one of it.
        """
        variable = self.outputs[stage]
        views: list[JaxprEqn] = []
        while not self._leads_to_logits(variable):
            place = self.made_at(variable)
            made = self.equations[place - 1]
            origin = _origin(made, variable) if place else None
            if origin is None:
                return None, []
            views.insert(0, made)
            variable = origin
        return variable, views

    def _leads_to_logits(self, variable: Any) -> bool:
        reached = {variable}
        for eqn in self.equations[self.made_at(variable) :]:
            if any(not isinstance(atom, Literal) and atom in reached for atom in eqn.invars):
                reached.update(eqn.outvars)
        return self.logits in reached

    def run(self, equations: Iterable[JaxprEqn], values: Values) -> Values:
        """The values with those that the equations add."""
        return _run(self.jaxpr, equations, values)


def _origin(made: JaxprEqn, variable: Any) -> Any:
    """What an equation makes a variable of by moving values around, if that is all it does."""
    origin: Any = made.invars[0] if len(made.invars) == 1 else None
    if made.primitive.name not in VIEWS or origin is None or isinstance(origin, Literal):
        return None
    return origin if origin.aval.size == variable.aval.size else None


def _trace(apply: Apply, params: Params, image: Array | jax.ShapeDtypeStruct) -> _Program:
    closed, shapes = jax.make_jaxpr(apply, return_shape=True)(params, image)
    while any(_opens(eqn, closed.jaxpr) for eqn in closed.jaxpr.eqns):
        closed = _open_calls(closed)
    values = [*closed.consts, *jax.tree.leaves((params, image))]
    logits, *outputs = closed.jaxpr.outvars
    return _Program(
        jaxpr=closed.jaxpr,
        inputs=dict(zip([*closed.jaxpr.constvars, *closed.jaxpr.invars], values, strict=True)),
        logits=logits,
        outputs=dict(zip(sorted(shapes[1]), outputs, strict=True)),  # as JAX orders a dictionary
    )


def _opens(eqn: JaxprEqn, jaxpr: Jaxpr) -> bool:
    """Whether an activation may have been made inside a call, out of the cut's reach."""
    return eqn.primitive.name in CALLS and any(out in jaxpr.outvars for out in eqn.outvars)


def _open_calls(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program with the equations of the calls that return activations in their place."""
    jaxpr = closed.jaxpr

    def run(*inputs: Array) -> list[Array]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *inputs], strict=True))
        for eqn in jaxpr.eqns:
            if _opens(eqn, jaxpr):
                inner = eqn.params["jaxpr"]
                inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
                made = jaxpr_as_fun(inner)(*(_read(atom, values) for atom in eqn.invars))
                values.update(zip(eqn.outvars, made, strict=True))
            else:
                values = _run(jaxpr, [eqn], values)
        return [_read(atom, values) for atom in jaxpr.outvars]

    return jax.make_jaxpr(run)(*closed.in_avals)


def _run(jaxpr: Jaxpr, equations: Iterable[JaxprEqn], values: Values) -> Values:
    known = dict(values)
    for eqn in equations:
        inputs = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
        alone = jaxpr.replace(constvars=[], invars=inputs, outvars=eqn.outvars, eqns=[eqn])
        made = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(known[variable] for variable in inputs))
        known.update(zip(eqn.outvars, made, strict=True))
    return known


def _read(atom: Any, values: Values) -> Any:
    return atom.val if isinstance(atom, Literal) else values[atom]
