# syntax=docker/dockerfile:1
# ted_ds with the versions that were tested together, for NVIDIA GPUs or for CPUs alone:
#   docker build --tag ted_ds .
#   docker build --tag ted_ds:cpu --build-arg DEVICE=cpu --build-arg PIP_EXTRA_INDEX_URL=URL .
#     (an index with builds of torch for CPUs alone: the installation page of PyTorch names one)
#   docker run --rm --gpus all --ipc host --volume "$PWD:/data" ted_ds ted-ds check my_recipe.yaml
# --ipc host: ranks of one container share memory. The user is not root; to write files as yours:
#   --user "$(id -u):$(id -g)" --env HOME=/tmp
# The CUDA stage has nvcc, as DeepSpeed compiles some of its optimizers where they are first used.
ARG DEVICE=cuda

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS device-cuda

FROM debian:bookworm-slim AS device-cpu
ARG PIP_EXTRA_INDEX_URL=""
# the values of use_cpu in launchers/environment.sh
ENV TED_DS_TORCH=torch==2.13.0+cpu \
    PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    DS_ACCELERATOR=cpu \
    OMP_NUM_THREADS=1

# hadolint ignore=DL3006
FROM device-${DEVICE} AS system
# a compiler and libaio for DeepSpeed's ops, git and ssh for its launcher; the release of the system pins their versions
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential ca-certificates git libaio-dev openssh-client pdsh python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 --shell /bin/bash ted_ds

FROM system AS environment
WORKDIR /opt/ted_ds
# what an installation reads of the project; the layer of its packages stays while only modules change
COPY setup.py pyproject.toml README.md ./
COPY launchers/ launchers/
COPY ted_ds/__init__.py ted_ds/
RUN --mount=type=cache,target=/root/.cache/pip \
    bash -euo pipefail -c 'source launchers/environment.sh && make_environment demo,lora,report'

FROM environment AS run
COPY ds_configs/ ds_configs/
COPY ted_ds/ ted_ds/
ENV PATH=/opt/ted_ds/.venv/bin:$PATH
USER 1001
WORKDIR /data
CMD ["ted-ds", "--help"]
