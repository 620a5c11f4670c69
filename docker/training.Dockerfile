# Training, export and benchmarks. The folder /work keeps data, runs and models.
#
#   docker build -f docker/training.Dockerfile -t distillery-training --build-arg TORCH_INDEX=URL .
#   docker run --rm -v distillery:/work distillery-training distillery-train --recipe quick
#   docker run --rm -v distillery:/work distillery-training distillery-export --run-dir runs/quick
#
# URL is one of PyTorch's own package indexes, which its installation page names: that for the CPU, or for a version of
# CUDA (docker run --gpus all). Without the argument torch is PyPI's, which on Linux includes CUDA and takes 3 GB more.

FROM python:3.11.15-slim-bookworm
ARG TORCH_INDEX=""
WORKDIR /build
# torch first: no change of code needs it again.
COPY constraints.txt ./
RUN python -m venv /opt/venv \
    && grep -E "^torch(vision)?==" constraints.txt > torch.txt \
    && /opt/venv/bin/python -m pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY distillery distillery
COPY training training
COPY export export
COPY serving serving
COPY benchmarks benchmarks
RUN /opt/venv/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[benchmarks]"
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin distillery \
    && install --directory --owner distillery /work
ENV ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/work/cache
USER 10001:10001
WORKDIR /work
VOLUME /work
CMD ["distillery-train", "--help"]
