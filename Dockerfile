# syntax=docker/dockerfile:1
# An image that holds mmjax, its locked dependencies and nothing else; it runs as nobody in particular.
# By default it serves the newest version of every model of the registry that is mounted:
#   docker run --rm -p 8000:8000 -v "$PWD/registry:/app/registry:ro" -e MMJAX_API_KEYS=app:KEY mmjax
# and it does what every command does:
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
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=10s --timeout=3s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["mmjax"]
# Ready goes off 5 seconds before the end, so that a balancer can turn to others.
CMD ["serve", "--host", "0.0.0.0", "--drain-delay", "5"]
