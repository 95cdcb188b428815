//! Which server a URL means.

use super::requests::Requests;
use crate::base::error::{Error, ErrorKind, Result};
#[cfg(any(feature = "objects", feature = "hdfs"))]
use crate::store::url::RemoteKind;
use crate::store::url::RemoteUrl;
use std::sync::Arc;

/// The requests that the server of a URL answers.
///
/// # Errors
/// `Unsupported` if this build knows none of its kind; `InvalidInput` if its configuration is wrong.
pub(super) fn connect(url: &RemoteUrl) -> Result<Arc<dyn Requests>> {
    match url.kind {
        #[cfg(feature = "objects")]
        RemoteKind::S3 | RemoteKind::Gcs | RemoteKind::Azure => {
            Ok(Arc::new(super::object::Objects::new(url)?))
        }
        #[cfg(feature = "hdfs")]
        RemoteKind::Hdfs => Ok(Arc::new(super::hdfs::Hdfs::new(url)?)),
        kind => {
            let scheme = kind.scheme();
            let what = format!("this build does not support {scheme}:// repositories: {url}");
            Err(Error::new(ErrorKind::Unsupported, what).hint("build it with the default features"))
        }
    }
}
