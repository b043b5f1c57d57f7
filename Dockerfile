# syntax=docker/dockerfile:1
# An image that holds mmjax, its locked dependencies and nothing else; it runs as nobody in particular.
#   docker run --rm -v "$PWD/registry:/app/registry:ro" -v "$PWD:/data" mmjax predict --model iris --input /data/new.csv --output /data/out.csv

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY requirements/py312.txt requirements/
COPY mmjax mmjax
# The environment has no pip of its own: the build's pip installs into it.
RUN python -m venv --without-pip /opt/mmjax
RUN pip --python /opt/mmjax/bin/python install --constraint requirements/py312.txt ".[serve]"
RUN /opt/mmjax/bin/mmjax --version

FROM python:3.13-slim
COPY --from=build /opt/mmjax /opt/mmjax
ENV PATH=/opt/mmjax/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["mmjax"]
CMD ["--help"]
