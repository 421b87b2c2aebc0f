"""Hold the architectures that tickets are made of, one package each."""
