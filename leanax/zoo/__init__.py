"""Reference models, written plainly, with no compression inside; configs name them as `zoo.lenet:LeNet5`."""
