//! imgsnap: block-level incremental snapshots of disk images.
#![doc = ""]
#![doc = include_str!("../docs/library.md")]

pub mod base;
pub mod bench;
pub mod chain;
pub mod codec;
pub mod delta;
mod facade;
pub mod format;
pub mod image;
pub mod libvirt;
pub mod machine;
pub mod merge;
pub mod ops;
pub mod repo;
pub mod scan;
pub mod store;
pub mod tracking;
pub mod view;

pub use base::error::{Error, ErrorKind, Result};
pub use base::events::{Context, Event, Observer};
pub use base::message::{Action, Message};
pub use base::sys::share_heaps;
pub use base::units::ByteRange;
pub use facade::Confirmed;
pub use ops::apply::types::{Applied, ApplyRequest, ApplyTarget};
pub use ops::config::types::Configuration;
pub use ops::define::types::{DefineRequest, Defined};
pub use ops::delete::types::Deleted;
pub use ops::diff::engine::Difference;
pub use ops::diff::types::{DiffImage, DiffSide};
pub use ops::export::types::{ExportOutcome, ExportRequest};
pub use ops::flatten::types::Flattened;
pub use ops::import::types::Imported;
pub use ops::keys::types::KeySlot;
pub use ops::list::types::{DomainListing, ListedDisk, Listing};
pub use ops::owner::types::{OwnerStatus, SignedImage};
pub use ops::protect::types::Protected;
pub use ops::prune::types::{PruneRequest, Pruned};
pub use ops::relink::types::{Relinked, RelinkedBase};
pub use ops::remove::types::Removed;
pub use ops::repair::types::{
    ConfigOrigin, MendSource, Mended, MendedBy, Rebuilt, Repaired, RestoredConfig,
};
pub use ops::requests::types::{AskedSnapshot, DropRequest};
pub use ops::restore::types::{
    RestoreOutcome, RestoreRequest, RestoreTarget, RestoredGroup, RestoredMember, UpdateOutcome,
};
pub use ops::rollback::types::{RollbackOutcome, RollbackRequest};
pub use ops::serve::serve_store;
pub use ops::serve::types::ServeRequest;
pub use ops::snapshot::distinct::check_distinct;
pub use ops::snapshot::types::{
    ChangedSince, GivenChanges, Outcome, ParentChoice, SnapshotOutcome, SnapshotRequest, Window,
    name_of,
};
pub use ops::stats::CELLS;
pub use ops::stats::types::{Cost, Day, Stats};
pub use ops::verify::types::{Damage, DamageKind, Loss, Unchecked, Verified, VerifyScope};
pub use ops::watch::types::{WatchRequest, Watched};
pub use ops::work::types::{
    FilesVerified, Joined, PartMade, PlanJoined, PlanProgress, PlanRequest, PlanRestoreRequest,
    PlanState, Planned, RangeRestored, RestoreJoined, RestorePlace, TaskDone, TaskFailure,
    VerifyJoined,
};
pub use repo::Repository;
pub use repo::compaction::{Compaction, Merging};
pub use repo::config::Defaults;
pub use repo::group::{Member, MemberState, Members};
pub use repo::inside::refuse_inside_any;
pub use repo::policy::{Policy, SnapshotPolicy};
pub use repo::reference::{At, Reference, check_label};
pub use repo::session::Reader;
pub use tracking::{CloneUse, Clones, Track};
pub use view::{Restored, Samples, SnapshotView};
