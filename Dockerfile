# The default base runs on a CPU; for a GPU choose one with Python 3.11 or newer and the CUDA
# libraries. TORCH_INDEX names a package index to take torch from, such as that of CPU builds.
#   docker build --build-arg BASE=IMAGE --build-arg TORCH_INDEX=URL -t clmoe .
#   docker run --rm -v "$PWD:/work" clmoe run shapes
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/venv && useradd --create-home clmoe

WORKDIR /opt/clmoe
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY clmoe clmoe
COPY clmoe_cli clmoe_cli
COPY recipes recipes
RUN pip install -c constraints.txt .

RUN install -d -o clmoe /work
USER clmoe
WORKDIR /work
ENTRYPOINT ["clmoe"]
