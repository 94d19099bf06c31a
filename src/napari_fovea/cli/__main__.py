"""``python -m napari_fovea.cli``."""

from napari_fovea.cli import main

if __name__ == "__main__":
    main()
