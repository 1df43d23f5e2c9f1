"""Reference models without compression; configs name them as `zoo.lenet:LeNet5`.

>>> import jax
>>> import jax.numpy as jnp
>>> from leanax.zoo import lenet
>>> model, images = lenet.LeNet5(), jnp.zeros((2, 28, 28, 1))
>>> variables = model.init(jax.random.key(0), images)
>>> print(model.apply(variables, images).shape)
(2, 10)
"""
