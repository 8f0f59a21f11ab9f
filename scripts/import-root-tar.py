#!/usr/bin/env python3
"""Import a tar of a root tree as an image, straight into an image store (no daemon needed)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drupe.errors import DrupeError, NotFound
from drupe.images.store import ImageStore
from drupe.spec.control import ImageImport

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tar", nargs="?", default="")
    parser.add_argument("--root", default="/var/lib/drupe/images", help="the image store (%(default)s)")
    parser.add_argument("--tag", required=True)
    parser.add_argument("--cmd", default="bash", help="what the image runs (%(default)s)")
    parser.add_argument("--check", action="store_true", help="only say whether the store has the image (exit code 0)")
    options = parser.parse_args()
    store = ImageStore(Path(options.root))
    try:
        if options.check:
            print(f"{options.tag} {store.resolve(options.tag).digest}")
            return
        config = {"Env": [f"PATH={PATH}"], "Cmd": [options.cmd]}
        request = ImageImport(format="rootfs", path=options.tar, tag=options.tag, config=config)
        print(f"{options.tag} {store.import_image(request).images[0].digest}")
    except NotFound as error:
        sys.exit(1 if options.check else f"import-root-tar: {error}")
    except DrupeError as error:
        sys.exit(f"import-root-tar: {error}\nhint: {error.hint}")


if __name__ == "__main__":
    main()
