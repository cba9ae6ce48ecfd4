# Local2Global in a container; the demo is its default command.
#
#     docker build -t local2global .
#     docker run --rm -v "$PWD/output:/home/l2g/output" local2global
#
#     docker build -t local2global:cuda --build-arg DEVICE=cuda .
#     docker run --rm --gpus all --shm-size 8g -v "$PWD/output:/home/l2g/output" local2global:cuda doctor
#
# PyPI's torch for x86-64 contains CUDA.  DEVICE=cuda adds the compiler that Triton and torch.compile call.
# TORCH_INDEX is a further package index, such as that of PyTorch's smaller CPU builds.
# EXTRAS are extras of the package, such as [swin,serve].
FROM python:3.11-slim

ARG DEVICE=cpu
ARG TORCH_INDEX=
ARG EXTRAS=

RUN if [ "$DEVICE" = cuda ]; then \
        apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; \
    fi

WORKDIR /opt/local2global
COPY setup.py pyproject.toml constraints.txt README.md ./
COPY projects projects
COPY configs configs
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt ".$EXTRAS"

RUN useradd --create-home l2g && mkdir /home/l2g/output && chown l2g /home/l2g/output
USER l2g
WORKDIR /home/l2g
ENV OMP_NUM_THREADS=1
ENTRYPOINT ["l2g"]
CMD ["demo"]
