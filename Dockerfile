# syntax=docker/dockerfile:1
# The server in an image: docker build -t facewise .            on the CPU
#                         docker build -t facewise:cuda --build-arg PROVIDER=cuda .
#
# docker run --read-only --publish 8080:8080 facewise
#
# As it is, it writes nothing, needs no right but its port, and asks itself for its health. Settings are FACEWISE_* variables, or
# /etc/facewise/facewise.toml; --volume ./my-models:/models:ro serves other models than those inside, and
# --volume evaluations:/data --env FACEWISE_DATA_DIR=/data keeps evaluations of labelled sets, which there are none of without it.

ARG PROVIDER=cpu
# Whoever wants the very same bytes each time names these by their digests: --build-arg RUST_IMAGE=rust@sha256:…
ARG RUST_IMAGE=rust:1.92.0-slim-bookworm
ARG PYTHON_IMAGE=python:3.13.5-slim-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-20250630-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package facewise --bin facewise --features tls,otlp \
    && install -D --strip target/release/facewise /out/facewise

# ONNX Runtime as the Makefile fetches it: pinned, and its SHA-256 compared.
FROM ${PYTHON_IMAGE} AS runtime-cpu
COPY scripts/fetch.py /fetch/scripts/fetch.py
RUN python3 -B /fetch/scripts/fetch.py onnxruntime && rm /fetch/.onnxruntime/*.lock

FROM ${PYTHON_IMAGE} AS runtime-cuda
COPY scripts/fetch.py /fetch/scripts/fetch.py
RUN python3 -B /fetch/scripts/fetch.py onnxruntime-cuda cuda && rm /fetch/.onnxruntime/*.lock

FROM ${DEBIAN_IMAGE} AS base
COPY --from=build /out/facewise /opt/facewise/bin/facewise
COPY models /models
COPY LICENSE-APACHE LICENSE-MIT /opt/facewise/
ENV PATH=/opt/facewise/bin:$PATH \
    FACEWISE_LISTEN=0.0.0.0:8080 \
    FACEWISE_MODELS=/models \
    FACEWISE_DATA_DIR=none
# A volume that is mounted here belongs to whom the folder belongs to.
RUN install --directory --owner 65532 --group 65532 --mode 0700 /data
WORKDIR /etc/facewise
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["facewise", "health"]
ENTRYPOINT ["facewise"]
CMD ["serve"]

# The program looks for ONNX Runtime in the folders above its own.
FROM base AS cpu
COPY --from=runtime-cpu /fetch/.onnxruntime /opt/facewise/.onnxruntime

FROM base AS cuda
COPY --from=runtime-cuda /fetch/.onnxruntime /opt/facewise/.onnxruntime
ENV FACEWISE_PROVIDER=cuda \
    ORT_DYLIB_PATH=/opt/facewise/.onnxruntime/1.31.1-cuda/libonnxruntime.so \
    LD_LIBRARY_PATH=/opt/facewise/.onnxruntime/cuda-13.0/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${PROVIDER}
