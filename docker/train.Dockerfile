# syntax=docker/dockerfile:1
# docker build -f docker/train.Dockerfile -t longhaul .
# docker run --gpus all --shm-size 16g --stop-timeout 300 -e RUN=runs/fox -v /data:/data longhaul \
#   python -m finetune.launch --standalone --nproc_per_node gpu --max_restarts 9 -m finetune conf=hyperfusion data.shards=shards run.name=fox
#
# The CUDA 13.0 runtime, cuDNN and NCCL come with torch's wheel, in the versions that it was built for; an nvidia/cuda
# image would hold a second set. The host needs a driver of 580 or later and the NVIDIA container toolkit.
# Pinned by tag; put a digest behind it (`docker buildx imagetools inspect` shows it) where builds have to be identical.
FROM python:3.11.14-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /dist .

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="longhaul" \
  org.opencontainers.image.description="Finetuning of Stable Diffusion over months: training" \
  org.opencontainers.image.licenses="Apache-2.0"
# The compiler is for triton, which builds a launcher for its kernels (model.compile, 8-bit optimizers).
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
  --mount=type=cache,target=/var/lib/apt,sharing=locked \
  rm -f /etc/apt/apt.conf.d/docker-clean \
  && apt-get update \
  && apt-get install --yes --no-install-recommends g++=4:12.2.* tini=0.19.* \
  && useradd --uid 1000 --create-home longhaul \
  && install --directory --owner 1000 --group 1000 /data
ENV DS_BUILD_OPS=0
# By far the largest part, in a layer that only another version makes anew.
RUN --mount=type=cache,target=/root/.cache/pip \
  --mount=type=bind,source=constraints.txt,target=/constraints.txt \
  pip install --constraint /constraints.txt torch
RUN --mount=type=cache,target=/root/.cache/pip \
  --mount=type=bind,source=constraints.txt,target=/constraints.txt \
  --mount=type=bind,from=wheel,source=/dist,target=/dist \
  pip install --constraint /constraints.txt "$(echo /dist/longhaul-*.whl)[gpu]" pillow-heif pillow-jxl-plugin
# HF_HOME: what is downloaded outlives the container. The timeout, in seconds, has to fit a step and a checkpoint, and
# into what the engine waits before it kills (--stop-timeout, stop_grace_period, terminationGracePeriodSeconds).
ENV PYTHONUNBUFFERED=1 \
  HF_HOME=/data/huggingface \
  TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 \
  NVIDIA_VISIBLE_DEVICES=all \
  NVIDIA_DRIVER_CAPABILITIES=compute,utility \
  NVIDIA_REQUIRE_CUDA="cuda>=13.0"
USER 1000:1000
WORKDIR /data
# Healthy or finished, by the run's own files: RUN names its folder. A run that starts has half an hour for it.
HEALTHCHECK --interval=1m --timeout=30s --start-period=30m --retries=3 \
  CMD ["sh", "-c", "python -m finetune.runs status \"${RUN:?give the run as RUN=runs/NAME}\" || exit 1"]
# tini hands on what stops the container to the launcher, which waits for its workers to save, and buries the dead.
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "finetune"]
