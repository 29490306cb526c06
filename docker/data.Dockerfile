# syntax=docker/dockerfile:1
# docker build -f docker/data.Dockerfile -t longhaul-data .
# docker run --rm --user "$(id -u):$(id -g)" -v /data:/data longhaul-data build pictures shards
# docker run --rm --user "$(id -u):$(id -g)" -v /data:/data longhaul-data stats conf=hyperfusion data.shards=shards
#
# Preparing data needs no GPU: torch is the build for CPUs, which leaves out gigabytes of CUDA.
# Pinned by tag; put a digest behind it (`docker buildx imagetools inspect` shows it) where builds have to be identical.
FROM python:3.11.14-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /dist .

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="longhaul-data" \
  org.opencontainers.image.description="Finetuning of Stable Diffusion over months: data preparation" \
  org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 1000 --create-home longhaul && install --directory --owner 1000 --group 1000 /data
ENV DS_BUILD_OPS=0
# Of 2.13.0 and 2.13.0+cpu, both of which the constraint allows, pip takes the latter.
RUN --mount=type=cache,target=/root/.cache/pip \
  --mount=type=bind,source=constraints.txt,target=/constraints.txt \
  pip install --extra-index-url https://download.pytorch.org/whl/cpu --constraint /constraints.txt torch
RUN --mount=type=cache,target=/root/.cache/pip \
  --mount=type=bind,source=constraints.txt,target=/constraints.txt \
  --mount=type=bind,from=wheel,source=/dist,target=/dist \
  pip install --constraint /constraints.txt /dist/longhaul-*.whl pillow-heif pillow-jxl-plugin
ENV PYTHONUNBUFFERED=1 HF_HOME=/data/huggingface
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["python", "-m", "data_tools"]
CMD ["--help"]
