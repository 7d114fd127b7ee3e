#!/usr/bin/env bash
# Builds llama-cpp-python from source in FOLDER, unpacks the llama.cpp sources that come with it for their converters,
# and runs the tests that are marked `llamacpp`. What is there already is not built again.
#
#   tests/llamacpp.sh FOLDER [PYTEST OPTIONS]
set -euo pipefail

mkdir -p "${1:?give a folder for the environment and the sources}"
home=$(cd "$1" && pwd)
shift
project=$(cd "$(dirname "$0")/.." && pwd)
python=$home/venv/bin/python

[ -x "$python" ] || python3 -m venv "$home/venv"
if [ ! -d "$home/llama.cpp" ]; then
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python --dest "$home/sdist"
    tar -xzf "$home"/sdist/llama_cpp_python-*.tar.gz -C "$home/sdist"
    mv "$home"/sdist/llama_cpp_python-*/vendor/llama.cpp "$home/llama.cpp"
fi
# The converters need sentencepiece to see that a tokenizer is of another kind.
"$python" -m pip install --quiet "${TORCH:-torch==2.13.0}" -e "$project[test]" sentencepiece
if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
    export CMAKE_ARGS="${CMAKE_ARGS:--DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF}"
    "$python" -m pip install --no-deps "$home"/sdist/llama_cpp_python-*.tar.gz
    "$python" -m pip install --quiet diskcache jinja2
fi
cd "$project"
LLAMA_CPP_SOURCE=$home/llama.cpp "$python" -m pytest -m llamacpp "$@"
