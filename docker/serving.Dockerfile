# The service alone: no torch, no compiler, no pip, no training code. The models are mounted, so one image serves every
# repository that `make export` writes.
#
#   docker build -f docker/serving.Dockerfile -t distillery-serving .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v "$PWD/models:/models:ro" distillery-serving

FROM python:3.11.15-slim-bookworm AS build
WORKDIR /build
# The dependencies of the extras `grpc`, `serving`, `signed` and `tracing` with their hashes, written by `make lock-image`; installed before
# any code is copied, so that a change of code needs no new installation. The environment has no pip; it is filled from outside.
COPY docker/requirements.txt docker/build-requirements.txt ./
RUN python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes -r requirements.txt --no-compile \
    && python -m pip install --no-cache-dir --require-hashes -r build-requirements.txt
# Two fifths of the environment are never imported: the libraries' own tests, all of scipy but ndimage, and of onnxruntime all
# but its Python module, which contains the runtime a second time (libonnxruntime.so is for programs in C).
RUN find /opt/venv/lib -type d -name tests -prune -exec rm -r {} + \
    && find /opt/venv/lib/python*/site-packages/scipy /opt/venv/lib/python*/site-packages/onnxruntime \
        -mindepth 1 -maxdepth 1 -type d ! -name ndimage ! -name special ! -name _lib ! -name capi ! -name __pycache__ \
        -exec rm -r {} + \
    && rm /opt/venv/lib/python*/site-packages/onnxruntime/capi/libonnxruntime.so.* \
    && /opt/venv/bin/python -m compileall -q /opt/venv/lib
# The version of the service is that of the installed package. The other packages are left out.
COPY pyproject.toml README.md LICENSE ./
COPY distillery distillery
COPY serving serving
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index --wheel-dir wheels . \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index wheels/*.whl

FROM python:3.11.15-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin distillery
COPY --from=build /opt/venv /opt/venv
# The base image has no bytecode of the standard library, which every start would compile again: the root is read-only.
RUN /opt/venv/bin/python -c "import serving.service"
# Readable whatever the umask of the checkout.
COPY --chmod=644 docker/defaults.toml /opt/venv/defaults.toml
# onnxruntime's released builds send usage data to their maker unless this is set.
ENV ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DISTILLERY_DEFAULTS=/opt/venv/defaults.toml
USER 10001:10001
EXPOSE 8000
# Of the port being served, whether an option, a variable or a file sets it. A check takes 0.4 s of CPU time.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["distillery-serve", "health"]
# Without a shell, SIGTERM reaches the service itself, which completes the requests in flight and exits.
ENTRYPOINT ["distillery-serve"]
