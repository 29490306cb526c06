# docker build -f docker/train.Dockerfile -t longhaul .
# docker run --gpus all --shm-size 16g -v /data:/data -w /data longhaul accelerate launch --multi_gpu --num_processes 2 -m finetune conf=hyperfusion …
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3.12 python3.12-venv python3.12-dev build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH DS_BUILD_OPS=0
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[gpu]'
WORKDIR /data
