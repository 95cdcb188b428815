"""A stand-in for Google Cloud Storage, in memory: what the crate object_store asks of the XML API, and no more, which is generations,
their preconditions, ranges, multipart uploads, copies and lists in pages. It follows Google's documentation, and was never compared
with the service itself. (fake-gcs-server 1.56 answers each plain PUT of that API with 400.)

usage: gcs.py PORT [KEYS-IN-A-PAGE]
"""
import hashlib, http.server, re, sys, threading, time
from functools import partial
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

XML = "<?xml version='1.0'?>"
PAGE = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
lock = threading.Lock()
buckets, uploads = {}, {}
generation = time.time_ns() // 1000


class Object:
    def __init__(self, data):
        global generation
        generation += 1
        self.data, self.generation, self.made = data, generation, time.gmtime()
        self.etag = '"%s"' % hashlib.md5(data).hexdigest()


class Refused(Exception):
    pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def answer(self, code, body=b"", kind="application/xml", thing=None, **more):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        if thing:
            self.send_header("ETag", thing.etag)
            self.send_header("x-goog-generation", str(thing.generation))
            self.send_header("Last-Modified", time.strftime("%a, %d %b %Y %H:%M:%S GMT", thing.made))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self):
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        _, bucket, *key = unquote(url.path).split("/", 2)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            with lock:
                reply = self.bucket(bucket, query) if not key or not key[0] else self.object(bucket, key[0], query, body)
        except Refused as refused:
            code, name = refused.args
            reply = partial(self.answer, code, f"{XML}<Error><Code>{name}</Code><Message>{name}</Message></Error>")
        reply()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request

    def log_message(self, format, *args):
        print(self.log_date_time_string(), format % args, file=sys.stderr)

    def bucket(self, bucket, query):
        if self.command == "PUT":
            if bucket in buckets:
                raise Refused(409, "BucketAlreadyOwnedByYou")
            buckets[bucket] = {}
            return partial(self.answer, 200)
        if not bucket:
            return partial(self.answer, 200)
        if bucket not in buckets:
            raise Refused(404, "NoSuchBucket")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after = query.get("continuation-token") or query.get("start-after", "")
        pages, last, seen = [], None, set()
        for key in sorted(buckets[bucket]):
            if not key.startswith(prefix) or key <= after:
                continue
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            common = key[: cut + 1] if cut >= 0 else None
            if common and (common in seen or after.startswith(common)):
                last = key
                continue
            if len(pages) == min(PAGE, int(query.get("max-keys", PAGE))):
                pages.append(f"<IsTruncated>true</IsTruncated><NextContinuationToken>{escape(last)}</NextContinuationToken>")
                break
            last = key
            if common:
                seen.add(common)
                pages.append(f"<CommonPrefixes><Prefix>{escape(common)}</Prefix></CommonPrefixes>")
            else:
                thing = buckets[bucket][key]
                made = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", thing.made)
                pages.append(f"<Contents><Key>{escape(key)}</Key><Generation>{thing.generation}</Generation>"
                             f"<LastModified>{made}</LastModified><ETag>{thing.etag}</ETag><Size>{len(thing.data)}</Size></Contents>")
        return partial(self.answer, 200, XML + "<ListBucketResult>" + "".join(pages) + "</ListBucketResult>")

    def object(self, bucket, key, query, body):
        if bucket not in buckets:
            raise Refused(404, "NoSuchBucket")
        objects = buckets[bucket]
        there = objects.get(key)
        method, upload = self.command, query.get("uploadId")
        if method == "POST" and "uploads" in query:
            upload = hashlib.md5(f"{time.time_ns()}{key}".encode()).hexdigest()
            uploads[upload] = {}
            said = f"{XML}<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return partial(self.answer, 200, said)
        if upload:
            if upload not in uploads:
                raise Refused(404, "NoSuchUpload")
            if method == "PUT":
                thing = uploads[upload][int(query["partNumber"])] = Object(body)
                return partial(self.answer, 200, thing=thing)
            parts = uploads[upload]
            if method == "DELETE":
                del uploads[upload]
                return partial(self.answer, 204)
            wanted = [int(n) for n in re.findall(r"<PartNumber>(\d+)</PartNumber>", body.decode())]
            if not set(wanted) <= set(parts):
                raise Refused(400, "InvalidPart")
            del uploads[upload]
            thing = objects[key] = Object(b"".join(parts[n].data for n in wanted))
            said = f"{XML}<CompleteMultipartUploadResult><ETag>{thing.etag}</ETag></CompleteMultipartUploadResult>"
            return partial(self.answer, 200, said, thing=thing)
        wanted = self.headers.get("x-goog-if-generation-match")
        if wanted is not None and int(wanted) != (there.generation if there else 0):
            raise Refused(412, "PreconditionFailed")
        if method == "PUT":
            if source := self.headers.get("x-goog-copy-source"):
                other, name = unquote(source).lstrip("/").split("/", 1)
                if name not in buckets.get(other, {}):
                    raise Refused(404, "NoSuchKey")
                body = buckets[other][name].data
            thing = objects[key] = Object(body)
            return partial(self.answer, 200, "<CopyObjectResult/>" if source else "", thing=thing)
        if not there or query.get("generation", str(there.generation)) != str(there.generation):
            raise Refused(404, "NoSuchKey")
        if method == "DELETE":
            del objects[key]
            return partial(self.answer, 204)
        if self.headers.get("If-Match", there.etag) not in (there.etag, "*"):
            raise Refused(412, "PreconditionFailed")
        if self.headers.get("If-None-Match") in (there.etag, "*"):
            return partial(self.answer, 304, thing=there)
        size = len(there.data)
        kind = "application/octet-stream"
        bounds = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not bounds:
            return partial(self.answer, 200, there.data, kind, thing=there)
        first = int(bounds[1]) if bounds[1] else max(0, size - int(bounds[2]))
        last = min(int(bounds[2]), size - 1) if bounds[1] and bounds[2] else size - 1
        if first >= size or last < first:
            raise Refused(416, "InvalidRange")
        return partial(self.answer, 206, there.data[first : last + 1], kind, thing=there, Content_Range=f"bytes {first}-{last}/{size}")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
