"""Public models at small sizes: their sources and their calls.

This file contains none of their code. Each entry imports its model from a directory with clones of the public
repositories, side by side, or from an installed package. The list was fixed before any model was tried.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Built(NamedTuple):
  """A model as functions `fn(variables, *inputs) -> out`; `train` returns `(out, new state)`, or is None.

  `axis`: the device axis without which its batch norms do not train. `float_paths`: sites that int8 leaves in float.
  """

  fn: Callable[..., Any]
  variables: Any
  inputs: tuple[Any, ...]
  train: Callable[..., Any] | None = None
  axis: str | None = None
  float_paths: str | None = None


class Entry(NamedTuple):
  """One model: `repository` is its directory among the clones (owner/name), or an installed package."""

  name: str
  repository: str
  file: str
  build: Callable[[Path], Built]


@contextlib.contextmanager
def beside(directory: Path) -> Iterator[None]:
  """Puts a directory on the import path."""
  sys.path.insert(0, str(directory))
  try:
    yield
  finally:
    sys.path.remove(str(directory))


def module_at(path: Path) -> Any:
  """Imports the module of one file under a unique name."""
  name = "others_" + "_".join(path.with_suffix("").parts[-3:]).replace("-", "_")
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise FileNotFoundError(path)
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  with beside(path.parent):
    spec.loader.exec_module(module)
  return module


def package(root: Path, name: str) -> Any:
  with beside(root):
    return importlib.import_module(name)


def shaken(variables: Any) -> Any:
  """Returns the variables with noise, so that no factor of 0 hides an error; variances stay above 0."""
  rng = np.random.default_rng(0)

  def shake(path: Any, leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    if "var" in jax.tree_util.keystr(path[-1:]):
      return leaf * jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
    return leaf + jnp.asarray(rng.normal(0.0, 0.03, leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(shake, variables)


def images(*shape: int) -> jax.Array:
  return jax.random.uniform(jax.random.key(1), shape, jnp.float32)


def tokens(*shape: int, vocabulary: int = 30) -> jax.Array:
  return jax.random.randint(jax.random.key(2), shape, 1, vocabulary)


def linen(
  model: Any,
  inputs: tuple[Any, ...],
  evaluate: dict[str, Any],
  train: dict[str, Any] | None = None,
  trained: Any = None,
) -> Built:
  """Builds a linen module; `trained` is the module for training if it differs."""
  from flax.core import meta

  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  variables = meta.unbox(jax.jit(lambda *xs: model.init(rngs, *xs, **evaluate))(*inputs))
  variables = shaken({name: tree for name, tree in variables.items() if name in ("params", "batch_stats")})

  def fn(variables: Any, *xs: Any) -> Any:
    return model.apply(variables, *xs, **evaluate)

  def step(variables: Any, *xs: Any) -> Any:
    dropout = {"dropout": jax.random.key(3)}
    return (trained or model).apply(variables, *xs, **(train or {}), rngs=dropout, mutable=["batch_stats"])

  return Built(fn, variables, inputs, step if train is not None or trained is not None else None)


_MODES: tuple[dict[str, Any], dict[str, Any]] = ({"train": False}, {"train": True})


# google/flax.


def flax_resnet(root: Path) -> Built:
  models = module_at(root / "examples/imagenet/models.py")
  model = models.ResNet(stage_sizes=[1, 1], block_cls=models.BottleneckResNetBlock, num_classes=5, num_filters=8)
  return linen(model, (images(2, 32, 32, 3),), *_MODES)._replace(axis="batch")


def flax_vae(root: Path) -> Built:
  model = module_at(root / "examples/vae/models.py").VAE(latents=4)
  return linen(model, (images(2, 784), jax.random.key(5)), {})


def flax_lm1b(root: Path) -> Built:
  return _flax_transformer(root, "lm1b", "TransformerLM", (tokens(2, 8),))


def flax_wmt(root: Path) -> Built:
  return _flax_transformer(root, "wmt", "Transformer", (tokens(2, 8), tokens(2, 6)))


_SMALL = {"emb_dim": 16, "num_heads": 2, "num_layers": 2, "qkv_dim": 16, "mlp_dim": 32, "max_len": 8}


def _flax_transformer(root: Path, example: str, name: str, inputs: tuple[Any, ...]) -> Built:
  models = module_at(root / f"examples/{example}/models.py")
  config = models.TransformerConfig(vocab_size=30, output_vocab_size=30, deterministic=True, **_SMALL)
  trained = getattr(models, name)(config.replace(deterministic=False))
  return linen(getattr(models, name)(config), inputs, {}, trained=trained)


def flax_sst2(root: Path) -> Built:
  models = module_at(root / "examples/sst2/models.py")
  model = models.TextClassifier(
    embedding_size=12, hidden_size=8, vocab_size=30, output_size=2, dropout_rate=0.1, word_dropout_rate=0.1
  )
  inputs = (tokens(2, 6), jnp.asarray([6, 4]))
  return linen(model, inputs, {"deterministic": True}, {"deterministic": False})


def flax_nlp_seq(root: Path) -> Built:
  models = module_at(root / "examples/nlp_seq/models.py")
  model = models.Transformer(models.TransformerConfig(vocab_size=30, output_vocab_size=7, **_SMALL))
  variables = jax.jit(lambda x: model.init(jax.random.key(0), inputs=x, train=False))(tokens(2, 8))

  def train(variables: Any, x: Any) -> Any:
    return model.apply(variables, inputs=x, train=True, rngs={"dropout": jax.random.key(3)}), {}

  return Built(lambda v, x: model.apply(v, inputs=x, train=False), shaken(variables), (tokens(2, 8),), train)


def flax_gcn(root: Path) -> Built:
  import jraph

  models = module_at(root / "examples/ogbg_molpcba/models.py")
  sizes = {"latent_size": 8, "num_mlp_layers": 2, "message_passing_steps": 2, "output_globals_size": 3}
  graphs = jraph.GraphsTuple(
    nodes=images(5, 4), edges=images(6, 3), senders=jnp.asarray([0, 1, 2, 3, 3, 4]),
    receivers=jnp.asarray([1, 2, 0, 4, 3, 3]), globals=images(2, 2), n_node=jnp.asarray([3, 2]),
    n_edge=jnp.asarray([3, 3]),
  )  # fmt: skip
  model = models.GraphConvNet(**sizes)
  return linen(model, (graphs,), {}, trained=models.GraphConvNet(**sizes, dropout_rate=0.1, deterministic=False))


def flax_ppo(root: Path) -> Built:
  model = module_at(root / "examples/ppo/models.py").ActorCritic(num_outputs=4)
  return linen(model, (255.0 * images(2, 84, 84, 4),), {})


def _nnx(model: Any, call: Callable[..., Any], inputs: tuple[Any, ...], collections: dict[str, Any]) -> Built:
  """Builds an nnx module, with one tree of plain dicts per kind of variable."""
  from flax import nnx

  definition, *states, rest = nnx.split(model, *collections.values(), ...)
  variables = shaken({name: nnx.to_pure_dict(state) for name, state in zip(collections, states, strict=True)})

  def fn(train: bool) -> Callable[..., Any]:
    def called(variables: Any, *xs: Any) -> Any:
      filled = []
      for name, state in zip(collections, states, strict=True):
        copy = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(copy, variables[name])
        filled.append(copy)
      merged = nnx.merge(definition, *filled, rest)
      merged.train() if train else merged.eval()
      out = call(merged, nnx.Rngs(3), *xs)
      others = {name: kind for name, kind in collections.items() if name != "params"}
      stats = {name: nnx.to_pure_dict(nnx.state(merged, kind)) for name, kind in others.items()}
      return (out, stats) if train else out

    return called

  return Built(fn(False), variables, inputs, fn(True))


def flax_mnist(root: Path) -> Built:
  from flax import nnx

  model = module_at(root / "examples/mnist/train.py").CNN(nnx.Rngs(0))
  collections = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
  return _nnx(model, lambda m, rngs, x: m(x, rngs), (images(2, 28, 28, 1),), collections)


def flax_gemma(root: Path) -> Built:
  from flax import nnx

  directory = root / "examples/gemma"
  with beside(directory):
    models, config = (importlib.import_module(name) for name in ("transformer", "transformer_cfg"))
  kinds = config.AttentionType
  cfg = config.TransformerConfig(
    num_layers=2, num_embed=30, embed_dim=16, hidden_dim=32, num_heads=2, head_dim=8, num_kv_heads=1,
    final_logit_softcap=30.0, use_post_attn_norm=True, use_post_ffw_norm=True, sliding_window_size=4,
    attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL), dropout_rate=0.1,
  )  # fmt: skip
  x = tokens(2, 8)
  positions, mask = models.build_positions_from_mask(x > 0), models.make_causal_attn_mask(x > 0)

  def call(model: Any, rngs: Any, x: Any) -> Any:
    return model(x, positions, None, mask, rngs=rngs)[0]

  return _nnx(models.Transformer(cfg, rngs=nnx.Rngs(0)), call, (x,), {"params": nnx.Param})


# google-research/vision_transformer and google-research/big_vision.

_BLOCKS = {"num_layers": 2, "mlp_dim": 32, "num_heads": 2, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}


def vit(root: Path, resnet: dict[str, Any] | None = None, size: int = 8) -> Built:
  import ml_collections

  models = package(root, "vit_jax.models_vit")
  model = models.VisionTransformer(
    num_classes=5, patches=ml_collections.ConfigDict({"size": (size, size)}), transformer=_BLOCKS, hidden_size=16,
    resnet=None if resnet is None else ml_collections.ConfigDict(resnet),
  )  # fmt: skip
  return linen(model, (images(2, 32, 32, 3),), *_MODES)


def vit_hybrid(root: Path) -> Built:
  return vit(root, {"num_layers": (1, 1), "width_factor": 0.5}, size=1)


def vit_mixer(root: Path) -> Built:
  import ml_collections

  model = package(root, "vit_jax.models_mixer").MlpMixer(
    patches=ml_collections.ConfigDict({"size": (8, 8)}), num_classes=5, num_blocks=2, hidden_dim=16, tokens_mlp_dim=8,
    channels_mlp_dim=32,
  )  # fmt: skip
  return linen(model, (images(2, 32, 32, 3),), *_MODES)


def big_vit(root: Path) -> Built:
  model = package(root, "big_vision.models.vit").Model(
    num_classes=5, patch_size=(8, 8), width=16, depth=2, num_heads=2, mlp_dim=32, pool_type="map", dropout=0.1,
    scan=True, head_zeroinit=False,
  )  # fmt: skip
  # The query of its pooling is made of a parameter: a kernel for each head.
  built = linen(model, (images(2, 32, 32, 3),), *_MODES)
  return built._replace(float_paths="MAPHead_0/*/query/kernel*")


def big_mixer(root: Path) -> Built:
  model = package(root, "big_vision.models.mlp_mixer").Model(
    num_classes=5, patch_size=(8, 8), num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32,
    stoch_depth=0.1,
  )  # fmt: skip
  return linen(model, (images(2, 32, 32, 3),), *_MODES)


def big_bit(root: Path) -> Built:
  model = package(root, "big_vision.models.bit").Model(num_classes=5, width=0.5, depth=(1, 1))
  return linen(model, (images(2, 32, 32, 3),), *_MODES)


# Others.


def nanodo(root: Path) -> Built:
  models = package(root, "nanodo.model")
  config = models.DoConfig(D=16, H=2, L=8, N=2, V=30, F=32, remat=True)
  return linen(models.TransformerDo(config), (tokens(2, 8),), {}, {})


def flaxmodels_resnet(root: Path) -> Built:
  model = package(root, "flaxmodels.resnet").ResNet18(output="logits", pretrained=None, num_classes=5)
  return linen(model, (images(2, 32, 32, 3),), *_MODES)


def flaxmodels_vgg(root: Path) -> Built:
  model = package(root, "flaxmodels.vgg").VGG16(output="logits", pretrained=None, include_head=False)
  return linen(model, (images(2, 32, 32, 3),), *_MODES)


def jax_resnet(root: Path) -> Built:
  from functools import partial

  from flax import linen as nn

  models = package(root, "jax_resnet")

  def model(averages: bool) -> Any:
    norm = partial(nn.BatchNorm, momentum=0.9, use_running_average=averages)
    return models.ResNet(
      models.ResNetDBottleneckBlock, stage_sizes=[1, 1], hidden_sizes=(8, 16), n_classes=5, norm_cls=norm,
      stem_cls=models.ResNetDStem,
    )  # fmt: skip

  return linen(model(True), (images(2, 32, 32, 3),), {}, trained=model(False))


def scenic_unet(root: Path) -> Built:
  model = package(root, "scenic.projects.baselines.unet").UNet(num_classes=3, block_size=(4, 8))
  return linen(model, (images(2, 16, 16, 3),), *_MODES)


def diffusion_unet(root: Path) -> Built:
  model = module_at(root / "denoising_diffusion_flax/unet.py").Unet(dim=8, dim_mults=(1, 2), resnet_block_groups=4)
  return linen(model, (images(2, 16, 16, 3), jnp.asarray([1, 7])), {})


def _hugging_face(module: str, name: str, about: Any) -> Built:
  model = getattr(importlib.import_module(module), name)(about)
  ids = tokens(2, 8)
  mask, places = jnp.ones_like(ids), jnp.broadcast_to(jnp.arange(8), ids.shape)
  more = (jnp.zeros_like(ids), places, None) if "bert" in module else (places,)
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  variables = shaken({"params": model.init(rngs, ids, mask, *more, return_dict=False)["params"]})

  def fn(variables: Any, ids: Any) -> Any:
    return model.apply(variables, ids, mask, *more, deterministic=True, return_dict=False)[0]

  def train(variables: Any, ids: Any) -> Any:
    rngs = {"dropout": jax.random.key(3)}
    return model.apply(variables, ids, mask, *more, deterministic=False, return_dict=False, rngs=rngs)[0], {}

  return Built(fn, variables, (ids,), train)


def hf_bert(_: Path) -> Built:
  import transformers

  config = transformers.BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=8, num_labels=3,
  )  # fmt: skip
  module = "transformers.models.bert.modeling_flax_bert"
  return _hugging_face(module, "FlaxBertForSequenceClassificationModule", config)


def hf_gpt2(_: Path) -> Built:
  import transformers

  config = transformers.GPT2Config(vocab_size=30, n_positions=8, n_embd=16, n_layer=2, n_head=2)
  return _hugging_face("transformers.models.gpt2.modeling_flax_gpt2", "FlaxGPT2LMHeadModule", config)


_FLAX, _VIT, _BIG = "google/flax", "google-research/vision_transformer", "google-research/big_vision"
ENTRIES = (
  Entry("flax ImageNet ResNet", _FLAX, "examples/imagenet/models.py", flax_resnet),
  Entry("flax VAE", _FLAX, "examples/vae/models.py", flax_vae),
  Entry("flax lm1b transformer", _FLAX, "examples/lm1b/models.py", flax_lm1b),
  Entry("flax WMT transformer", _FLAX, "examples/wmt/models.py", flax_wmt),
  Entry("flax SST-2 LSTM", _FLAX, "examples/sst2/models.py", flax_sst2),
  Entry("flax sequence tagger", _FLAX, "examples/nlp_seq/models.py", flax_nlp_seq),
  Entry("flax graph convolutions", _FLAX, "examples/ogbg_molpcba/models.py", flax_gcn),
  Entry("flax PPO actor-critic", _FLAX, "examples/ppo/models.py", flax_ppo),
  Entry("flax MNIST CNN (nnx)", _FLAX, "examples/mnist/train.py", flax_mnist),
  Entry("flax Gemma (nnx)", _FLAX, "examples/gemma/transformer.py", flax_gemma),
  Entry("ViT", _VIT, "vit_jax/models_vit.py", vit),
  Entry("MLP-Mixer", _VIT, "vit_jax/models_mixer.py", vit_mixer),
  Entry("hybrid ResNet-ViT", _VIT, "vit_jax/models_resnet.py", vit_hybrid),
  Entry("big_vision ViT (scan)", _BIG, "big_vision/models/vit.py", big_vit),
  Entry("big_vision MLP-Mixer", _BIG, "big_vision/models/mlp_mixer.py", big_mixer),
  Entry("big_vision BiT", _BIG, "big_vision/models/bit.py", big_bit),
  Entry("nanodo (remat)", "google-deepmind/nanodo", "nanodo/model.py", nanodo),
  Entry("flaxmodels ResNet-18", "matthias-wright/flaxmodels", "flaxmodels/resnet/resnet.py", flaxmodels_resnet),
  Entry("flaxmodels VGG-16", "matthias-wright/flaxmodels", "flaxmodels/vgg/vgg.py", flaxmodels_vgg),
  Entry("jax-resnet ResNet-D", "n2cholas/jax-resnet", "jax_resnet/resnet.py", jax_resnet),
  Entry("scenic U-Net", "google-research/scenic", "scenic/projects/baselines/unet.py", scenic_unet),
  Entry("diffusion U-Net", "yiyixuxu/denoising-diffusion-flax", "denoising_diffusion_flax/unet.py", diffusion_unet),
  Entry("Hugging Face BERT", "transformers", "models/bert/modeling_flax_bert.py", hf_bert),
  Entry("Hugging Face GPT-2", "transformers", "models/gpt2/modeling_flax_gpt2.py", hf_gpt2),
)
