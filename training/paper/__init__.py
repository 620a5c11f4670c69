"""The MNIST experiments of Hinton, Vinyals and Dean (arXiv 1503.02531)."""
