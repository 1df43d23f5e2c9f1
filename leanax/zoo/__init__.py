"""Reference models without compression; configs name them as `zoo.lenet:LeNet5`."""
