"""The control plane: accounts and administration, by module. `README.md` here says how one is added."""
