//! A prefix in a bucket, and how objects are put there.

use crate::store::remote::requests::PutMode;
use object_store::ObjectStore;
use object_store::path::Path;
use std::sync::Arc;

/// What requests need, and uploads share.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Empty for the whole bucket.
    pub(super) prefix: Path,
}

pub(super) fn mode_of(mode: PutMode) -> object_store::PutMode {
    match mode {
        PutMode::IfAbsent => object_store::PutMode::Create,
        PutMode::Over => object_store::PutMode::Overwrite,
    }
}
