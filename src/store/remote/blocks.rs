//! Which hosts hold which bytes of a file in HDFS: by WebHDFS, which every NameNode of Hadoop 3 has.

use super::runtime::runtime;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::percent_encoded;
use crate::store::url::{RemoteKind, RemoteUrl};
use reqwest::Client;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
/// No answer of a NameNode is longer: a file of 16 TiB has 131,072 blocks.
const MAX_BYTES: usize = 64 << 20;
/// So many hosts are named: a file has three replicas, mostly.
const HOSTS: usize = 3;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "BlockLocations")]
    all: Locations,
}

#[derive(Deserialize)]
struct Locations {
    #[serde(rename = "BlockLocation", default)]
    blocks: Vec<Block>,
}

#[derive(Deserialize)]
struct Block {
    offset: u64,
    length: u64,
    #[serde(default)]
    hosts: Vec<String>,
}

/// The hosts that hold most of each range of a file, at most three. `webhdfs` is the address of WebHDFS, as
/// in `http://namenode:9870/webhdfs/v1`.
///
/// # Errors
/// `Unsupported` for what is not in HDFS; `Unavailable` if the NameNode does not answer.
pub fn hosts_of(webhdfs: &str, url: &RemoteUrl, ranges: &[Range<u64>]) -> Result<Vec<Vec<String>>> {
    if url.kind != RemoteKind::Hdfs {
        let what = format!("{url} is not in HDFS, so no host holds its blocks");
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
    let user = std::env::var("HADOOP_USER_NAME").ok();
    let user = user
        .map_or(String::new(), |user| format!("&user.name={}", percent_encoded(user.as_bytes())));
    let (base, path) = (webhdfs.trim_end_matches('/'), percent_encoded(url.path.as_bytes()));
    let asked = format!("{base}/{path}?op=GETFILEBLOCKLOCATIONS&offset=0&length={end}{user}");
    let text = runtime()?.block_on(get(&asked)).map_err(|e| e.at(base))?;
    let wrong = |e| Error::new(ErrorKind::Unavailable, format!("{base}: no list of blocks: {e}"));
    let answer: Answer = serde_json::from_str(&text).map_err(wrong)?;
    Ok(ranges.iter().map(|range| hosts_in(&answer.all.blocks, range)).collect())
}

/// Those with the most bytes of a range.
fn hosts_in(blocks: &[Block], range: &Range<u64>) -> Vec<String> {
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for block in blocks {
        let end = block.offset.saturating_add(block.length).min(range.end);
        let within = end.saturating_sub(block.offset.max(range.start));
        for host in block.hosts.iter().filter(|_| within > 0) {
            *bytes.entry(host).or_default() += within;
        }
    }
    let mut all: Vec<(&str, u64)> = bytes.into_iter().collect();
    all.sort_by_key(|(host, bytes)| (std::cmp::Reverse(*bytes), *host));
    all.into_iter().take(HOSTS).map(|(host, _)| host.to_owned()).collect()
}

async fn get(url: &str) -> Result<String> {
    let failed = |e: reqwest::Error| {
        let why = if e.is_timeout() { "no answer in time" } else { "no answer" };
        Error::new(ErrorKind::Unavailable, why)
    };
    let client = Client::builder().timeout(PATIENCE).build().map_err(failed)?;
    let mut answer = client.get(url).send().await.map_err(failed)?;
    if !answer.status().is_success() {
        let what = format!("the NameNode answers {}", answer.status().as_u16());
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    let mut text = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        text.extend_from_slice(&piece);
        if text.len() > MAX_BYTES {
            return Err(Error::new(ErrorKind::LimitExceeded, "the answer is too long"));
        }
    }
    String::from_utf8(text).map_err(|_| Error::new(ErrorKind::Unavailable, "not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_where_most_of_it_is() {
        let block = |offset, length, hosts: &[&str]| Block {
            offset,
            length,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        };
        let blocks =
            [block(0, 100, &["a", "b"]), block(100, 100, &["b", "c"]), block(200, 50, &["d"])];
        assert_eq!(hosts_in(&blocks, &(0..100)), ["a", "b"]);
        assert_eq!(hosts_in(&blocks, &(0..200)), ["b", "a", "c"]);
        assert_eq!(hosts_in(&blocks, &(150..250)), ["b", "c", "d"]);
        assert_eq!(hosts_in(&blocks, &(250..300)), [""; 0]);
    }
}
