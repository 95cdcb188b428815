//! Multipart uploads that nobody completed: no listing shows their parts, and they cost money. The client
//! has no request for them, so they are signed here (docs.aws.amazon.com, "ListMultipartUploads").

use super::errors::failed;
use crate::base::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use quick_xml::Reader;
use quick_xml::events::Event;
use reqwest::{Client, Method};
use std::time::Duration;

/// How long a signed request holds, and may take.
const LIFE: Duration = Duration::from_secs(60);
/// A bucket with more of them is swept again another time.
const MAX_PAGES: usize = 100;

/// An upload that has begun.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Begun {
    key: String,
    id: String,
    time: Option<Timestamp>,
}

/// A page of the list, and where the next one begins.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    uploads: Vec<Begun>,
    is_truncated: bool,
    next_key: String,
    next_id: String,
}

/// Gives up the uploads below a prefix that were begun before a time. Returns how many.
///
/// # Errors
/// Those of the server.
pub(super) async fn abort(
    s3: &AmazonS3,
    prefix: &Path,
    before: Timestamp,
    place: &str,
) -> Result<u64> {
    let client = Client::builder().timeout(LIFE).build().map_err(|e| unanswered(place, &e))?;
    let (mut aborted, mut key, mut id) = (0, String::new(), String::new());
    for _ in 0..MAX_PAGES {
        let mut query = vec![
            ("uploads".to_owned(), String::new()),
            ("prefix".to_owned(), format!("{prefix}/")),
        ];
        if !key.is_empty() {
            query.push(("key-marker".to_owned(), key));
            query.push(("upload-id-marker".to_owned(), id));
        }
        let text = ask(s3, &client, Method::GET, &Path::default(), query, place).await?;
        let page = parse(&text).map_err(|e| e.at(place))?;
        for begun in &page.uploads {
            let is_ours =
                begun.key.strip_prefix(prefix.as_ref()).is_some_and(|k| k.starts_with('/'));
            if is_ours && begun.time.is_some_and(|time| time < before) {
                let path = Path::parse(&begun.key);
                let path = path.map_err(|e| Error::corrupt(e.to_string()).at(place))?;
                let query = vec![("uploadId".to_owned(), begun.id.clone())];
                ask(s3, &client, Method::DELETE, &path, query, place).await?;
                aborted += 1;
            }
        }
        if !page.is_truncated {
            break;
        }
        (key, id) = (page.next_key, page.next_id);
    }
    Ok(aborted)
}

async fn ask(
    s3: &AmazonS3,
    client: &Client,
    method: Method,
    path: &Path,
    query: Vec<(String, String)>,
    place: &str,
) -> Result<String> {
    let options = SignedUrlOptions::new().with_query(query);
    let url = s3.signed_url_opts(method.clone(), path, LIFE, &options).await;
    let url = url.map_err(|e| failed("list the uploads of", place, e))?;
    let answer = client.request(method, url).send().await.map_err(|e| unanswered(place, &e))?;
    let status = answer.status();
    let text = answer.text().await.map_err(|e| unanswered(place, &e))?;
    match status.as_u16() {
        200..300 | 404 => Ok(text),
        code => {
            let kind = if code == 403 { ErrorKind::Auth } else { ErrorKind::Unavailable };
            Err(Error::new(kind, format!("cannot list the uploads of {place}: {status}")))
        }
    }
}

fn unanswered(place: &str, error: &reqwest::Error) -> Error {
    // Its text may have the signed address in it.
    let why = if error.is_timeout() { "no answer in time" } else { "no answer" };
    Error::new(ErrorKind::Unavailable, format!("cannot list the uploads of {place}: {why}"))
}

fn parse(text: &str) -> Result<Page> {
    let mut reader = Reader::from_str(text);
    let (mut page, mut name, mut value) = (Page::default(), String::new(), String::new());
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) => {
                name = tag.name().as_ref().to_owned();
                value.clear();
                if name == "Upload" {
                    page.uploads.push(Begun::default());
                }
            }
            Ok(Event::Text(part)) => value.push_str(&part),
            Ok(Event::GeneralRef(entity)) => match entity.resolve_char_ref() {
                Ok(Some(letter)) => value.push(letter),
                _ => value.push_str(match &*entity {
                    "amp" => "&",
                    "lt" => "<",
                    "gt" => ">",
                    "quot" => "\"",
                    "apos" => "'",
                    _ => return Err(Error::corrupt("an unknown entity")),
                }),
            },
            Ok(Event::End(tag)) if tag.name().as_ref() == name => {
                let told = std::mem::take(&mut value);
                match (name.as_str(), page.uploads.last_mut()) {
                    ("Key", Some(upload)) => upload.key = told,
                    ("UploadId", Some(upload)) => upload.id = told,
                    ("Initiated", Some(upload)) => upload.time = told.parse().ok(),
                    ("IsTruncated", _) => page.is_truncated = told == "true",
                    ("NextKeyMarker", _) => page.next_key = told,
                    ("NextUploadIdMarker", _) => page.next_id = told,
                    _ => {}
                }
                name.clear();
            }
            Ok(Event::Eof) => return Ok(page),
            Ok(Event::DocType(_)) | Err(_) => return Err(Error::corrupt("invalid XML")),
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_read_from_what_a_server_says() {
        let text = "<?xml version=\"1.0\"?><ListMultipartUploadsResult><IsTruncated>true</IsTruncated>\
                    <NextKeyMarker>r/b</NextKeyMarker><NextUploadIdMarker>2</NextUploadIdMarker>\
                    <Upload><Key>r/a&amp;b</Key><UploadId>2~x</UploadId><Owner><ID>t</ID></Owner>\
                    <Initiated>2026-11-20T10:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>";
        let page = parse(text).unwrap();
        assert!(page.is_truncated && page.next_key == "r/b" && page.next_id == "2");
        let time = Some("2026-11-20T10:00:00Z".parse().unwrap());
        let upload = Begun { key: "r/a&b".into(), id: "2~x".into(), time };
        assert_eq!(page.uploads, [upload]);
        assert!(parse("<!DOCTYPE x>").is_err());
    }
}
