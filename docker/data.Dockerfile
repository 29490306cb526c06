# docker build -f docker/data.Dockerfile -t longhaul-data .
# docker run -v /data:/data longhaul-data build /data/pictures /data/shards
FROM python:3.11-slim
ENV DS_BUILD_OPS=0
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .
ENTRYPOINT ["python", "-m", "data_tools"]
