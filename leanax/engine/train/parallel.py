"""One pure step on one device or many, with the same numbers: the only file that says pmap.

| mode      | what it is | the step sees |
| jit       | one device | the whole batch |
| pmap      | `jax.pmap`, today jit of shard_map without replication checking | its device's share, and an axis name |
| mesh      | jit over a mesh, the compiler splits | the whole batch |
| shard_map | as pmap, with replication checking: a forgotten mean over devices is an error of the trace | as pmap |

States have no leading device axis in any mode, and so neither have checkpoints. Users always give the global batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
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
  return _launched(step, mode, devices, divided=(1,))


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
  if mode == "mesh":
    fn = functools.partial(fn, split=NamedSharding(_mesh(devices), SPLIT))
  return _launched(fn, mode, devices, divided=())


def _launched(
  fn: Callable[..., Any], mode: str, devices: Sequence[jax.Device] | None, divided: tuple[int, ...]
) -> Callable[..., Any]:
  """Compiles a function, of whose arguments those at the places `divided` are split along their leading axis."""
  if mode not in MODES:
    raise unknown("parallel mode", mode, MODES)
  if mode == "jit":
    return jax.jit(fn) if devices is None else _on(jax.jit(fn), devices[0])
  mesh = _mesh(devices)
  if mode == "pmap":
    run = _pmap(functools.partial(fn, axis_name=AXIS), mesh, divided)
  elif mode == "mesh":
    run = jax.jit(fn, out_shardings=NamedSharding(mesh, EVERYWHERE))
  else:
    run = jax.jit(checked(functools.partial(fn, axis_name=AXIS), mesh, divided))

  def place(index: int, arg: Any) -> Any:
    """Checks that an argument divides and puts it where the mesh wants it; what is there already is not copied."""
    if index not in divided:
      return jax.device_put(arg, NamedSharding(mesh, EVERYWHERE))
    arg = with_class_masks(arg)
    size = share(arg, mesh.size)
    if mode == "pmap":
      arg = jax.tree.map(lambda a: a.reshape(mesh.size, size, *a.shape[1:]), arg)
    return jax.device_put(arg, NamedSharding(mesh, SPLIT))

  return lambda *args: run(*map(place, range(len(args)), args))


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh:
  return Mesh(np.array(list(jax.local_devices() if devices is None else devices)), (AXIS,))


def _on(run: Callable[..., Any], device: jax.Device) -> Callable[..., Any]:
  def call(*args):
    with jax.default_device(device):
      return run(*args)

  return call


def _pmap(named: Callable[..., Any], mesh: Mesh, divided: tuple[int, ...]) -> Callable[..., Any]:
  places = jax.device_put(np.arange(mesh.size), NamedSharding(mesh, SPLIT))  # pmap wants something to map over

  @functools.cache  # by the number of arguments: a new pmap would compile again
  def mapped(count: int) -> Callable[..., Any]:
    return jax.pmap(
      lambda _, *args: named(*args),
      axis_name=AXIS,
      in_axes=(0, *(0 if index in divided else None for index in range(count))),
      out_axes=None,  # pyrefly: ignore  # any pytree prefix is
      devices=list(mesh.devices.flat),
    )

  return lambda *args: mapped(len(args))(places, *args)


def checked(named: Callable[..., Any], mesh: Mesh, divided: tuple[int, ...] = (1,)) -> Callable[..., Any]:
  """Returns the function under `shard_map` with replication checking, for tracing as well as for running."""

  def run(*args):
    specs = tuple(SPLIT if index in divided else EVERYWHERE for index in range(len(args)))
    return jax.shard_map(named, mesh=mesh, in_specs=specs, out_specs=EVERYWHERE, check_vma=True)(*args)

  return run


def prove_replication(step: Callable[..., Any], devices: Sequence[jax.Device], *args: Any) -> None:
  """Traces a step over `devices`, and runs nothing; ValueError says which output would differ between devices."""
  jax.eval_shape(checked(functools.partial(step, axis_name=AXIS), _mesh(devices)), *args, *([None] * (3 - len(args))))


def with_class_masks(batch: Any) -> Any:
  """Returns the batch with a class mask for each example where it has one for all of them, which does not divide."""
  if not isinstance(batch, Mapping) or not {"image", "class_mask"} <= batch.keys():
    return batch
  mask, images = batch["class_mask"], jax.tree.leaves(batch["image"])
  if np.ndim(mask) != 1 and np.shape(mask)[:1] != (1,):
    return batch
  own = np.shape(mask)[np.ndim(mask) > 1 :]
  return {**batch, "class_mask": np.broadcast_to(mask, (*np.shape(images[0])[:1], *own))}


def share(batch: Any, devices: int) -> int:
  """Returns how many examples of the global batch each device gets.

  Raises:
    UserError: the batch does not divide, or its parts differ in length or are scalars.
  """
  shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
  if () in shapes:
    raise UserError("a part of the batch is a scalar: expected arrays, with the examples along the first axis")
  sizes = {shape[0] for shape in shapes}
  if len(sizes) != 1:
    raise UserError(f"the parts of a batch have {sorted(sizes)} examples: expected one number")
  (size,) = sizes
  if size % devices:
    raise UserError(f"a batch of {size} examples does not divide over {devices} devices")
  return size // devices
