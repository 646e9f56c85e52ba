# The engine's image: workers, Flower, the simulated provider.
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements/run.lock requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/run.lock
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY tasks tasks
COPY workers workers
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --system --home /app promptmill
USER promptmill
# SIGTERM drains; what has not ended within the platform's grace time goes back to the queue.
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "workers", "worker", "--loglevel", "INFO"]
