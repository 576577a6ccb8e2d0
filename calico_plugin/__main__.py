"""`python -m calico_plugin` is calicoctl."""

from calico_plugin.cli.main import main

if __name__ == "__main__":
    main()
