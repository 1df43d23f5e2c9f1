"""One pure step on one device or many, with the same numbers: the only file that says pmap.

| mode      | what it is | the step sees |
| jit       | one device | the whole batch |
| pmap      | `jax.pmap`, today jit of shard_map without replication checking | its device's share, and an axis name |
| mesh      | jit over a mesh, the compiler splits | the whole batch |
| shard_map | as pmap, with replication checking: a forgotten mean over devices is an error of the trace | as pmap |

States have no leading device axis in any mode, and so neither have checkpoints. Users always give the global batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from leanax.core.errors import UserError, unknown

AXIS = "batch"
MODES = ("jit", "pmap", "mesh", "shard_map")
EVERYWHERE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def parallelize(
  step: Callable[..., Any], mode: str = "jit", devices: Sequence[jax.Device] | None = None
) -> Callable[..., Any]:
  """Compiles `step(state, batch, teacher_variables=None, *, axis_name=None)` for devices.

  Args:
    step: the pure train step, or any function of that form whose results are the same on all devices.
    mode: one of `MODES`.
    devices: all local ones by default; the first of them for "jit".

  Returns:
    `call(state, batch, teacher_variables=None)`, which takes the global batch and raises UserError if it does not
    divide.
  """
  if mode not in MODES:
    raise unknown("parallel mode", mode, MODES)
  devices = list(jax.local_devices() if devices is None else devices)
  if mode == "jit":
    return _jit(step, devices[0])
  mesh = Mesh(np.array(devices), (AXIS,))
  named = functools.partial(step, axis_name=AXIS)
  if mode == "pmap":
    return _pmap(named, mesh)
  if mode == "mesh":
    everywhere, split = NamedSharding(mesh, EVERYWHERE), NamedSharding(mesh, SPLIT)
    run = jax.jit(
      step,
      in_shardings=(everywhere, split, everywhere),
      out_shardings=everywhere,
    )
  else:
    run = jax.jit(checked(named, mesh))
  return _dividing(run, mesh)


def resident(
  fn: Callable[..., Any], mode: str = "jit", devices: Sequence[jax.Device] | None = None
) -> Callable[..., Any]:
  """Compiles a function whose arguments are the same on all devices, and which takes its own part of the data.

  Args:
    fn: `fn(*args, axis_name=None, split=None)`. Under "pmap" and "shard_map" it has an axis name, and picks its part by
      its place on the axis; `split` of "mesh" is a sharding to hold the leading axis of a batch to.
    mode: one of `MODES`.
    devices: as of `parallelize`.

  Returns:
    `call(*args)`, with results that are the same on all devices.
  """
  if mode not in MODES:
    raise unknown("parallel mode", mode, MODES)
  devices = list(jax.local_devices() if devices is None else devices)
  if mode == "jit":
    return jax.jit(fn)
  mesh = Mesh(np.array(devices), (AXIS,))
  everywhere = NamedSharding(mesh, EVERYWHERE)
  named = functools.partial(fn, axis_name=AXIS)
  if mode == "pmap":
    run = _pmap_resident(named, mesh)
  elif mode == "mesh":
    run = jax.jit(functools.partial(fn, split=NamedSharding(mesh, SPLIT)), out_shardings=everywhere)
  else:
    run = jax.jit(jax.shard_map(named, mesh=mesh, in_specs=EVERYWHERE, out_specs=EVERYWHERE, check_vma=True))
  return lambda *args: run(*jax.device_put(args, everywhere))


def _pmap_resident(named: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  places = jax.device_put(np.arange(mesh.size), NamedSharding(mesh, SPLIT))  # pmap wants something to map over

  @functools.cache  # by the number of arguments: a new pmap would compile again
  def of(count: int) -> Callable[..., Any]:
    return jax.pmap(
      lambda _, *args: named(*args),
      axis_name=AXIS,
      in_axes=(0,) + (None,) * count,
      out_axes=None,  # pyrefly: ignore
      devices=list(mesh.devices.flat),
    )

  return lambda *args: of(len(args))(places, *args)


def checked(named: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """The step under `shard_map` with replication checking, for tracing as well as for running."""
  return jax.shard_map(
    named,
    mesh=mesh,
    in_specs=(EVERYWHERE, SPLIT, EVERYWHERE),
    out_specs=(EVERYWHERE, EVERYWHERE),
    check_vma=True,
  )


def prove_replication(step: Callable[..., Any], devices: Sequence[jax.Device], *args: Any) -> None:
  """Traces a step over `devices`, and runs nothing; ValueError says which output would differ between devices."""
  run = checked(functools.partial(step, axis_name=AXIS), Mesh(np.array(devices), (AXIS,)))
  jax.eval_shape(run, *args, *([None] * (3 - len(args))))


def share(batch: Any, devices: int) -> int:
  """How many examples of the global batch each device gets.

  Raises:
    UserError: the batch does not divide, or its parts differ in length.
  """
  sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}
  if len(sizes) != 1:
    raise UserError(f"the parts of a batch have {sorted(sizes)} examples: expected one number")
  (size,) = sizes
  if size % devices:
    raise UserError(f"a batch of {size} examples does not divide over {devices} devices")
  return size // devices


def _jit(step: Callable[..., Any], device: jax.Device) -> Callable[..., Any]:
  run = jax.jit(step)

  def call(state, batch, teacher_variables=None):
    with jax.default_device(device):
      return run(state, batch, teacher_variables)

  return call


def _dividing(run: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Checks the batch's size and puts everything where the mesh wants it; what is there already is not copied."""
  everywhere, split = NamedSharding(mesh, EVERYWHERE), NamedSharding(mesh, SPLIT)

  def call(state, batch, teacher_variables=None):
    share(batch, mesh.size)
    state, teacher_variables = jax.device_put((state, teacher_variables), everywhere)
    return run(state, jax.device_put(batch, split), teacher_variables)

  return call


def _pmap(named: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  run = jax.pmap(
    named,
    axis_name=AXIS,
    in_axes=(None, 0, None),
    out_axes=(None, None),  # pyrefly: ignore  # any pytree prefix is
    devices=list(mesh.devices.flat),
  )
  split = NamedSharding(mesh, SPLIT)

  def call(state, batch, teacher_variables=None):
    per_device = share(batch, mesh.size)
    batch = jax.tree.map(lambda a: a.reshape(mesh.size, per_device, *a.shape[1:]), batch)
    return run(state, jax.device_put(batch, split), teacher_variables)

  return call
