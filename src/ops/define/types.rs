//! A machine that is to be made from a snapshot, and what was made.

use crate::base::setters::setters;
use crate::ops::restore::types::RestoredMember;
use crate::repo::reference::At;
use serde::Serialize;
use std::path::PathBuf;

/// A machine that a user wants.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DefineRequest {
    /// The domain that was snapshotted.
    pub domain: String,
    /// Which snapshot of it.
    pub at: At,
    /// What the new one is called.
    pub name: String,
    /// The folder for its disks.
    pub pool: PathBuf,
    /// It keeps the UUID and the MAC addresses of the old one.
    pub same: bool,
    /// The stored definition may name files, programs and devices of the host.
    pub trust_xml: bool,
    /// Zeros where the disks could not be read when the snapshot was taken; otherwise that is an error.
    pub accept_unread: bool,
    /// The hypervisor; otherwise libvirt's default.
    pub connect: Option<String>,
}

impl DefineRequest {
    /// Of the newest snapshot of a domain, under another name, with its disks in `pool`.
    pub fn new(
        domain: impl Into<String>,
        name: impl Into<String>,
        pool: impl Into<PathBuf>,
    ) -> Self {
        let (domain, name, pool) = (domain.into(), name.into(), pool.into());
        Self { domain, name, pool, ..Self::default() }
    }

    setters! {
        /// Which snapshot of it.
        at: At,
        /// It keeps the UUID and the MAC addresses of the old one.
        same: bool,
        /// The stored definition may name files, programs and devices of the host.
        trust_xml: bool,
        /// Zeros where the disks could not be read when the snapshot was taken.
        accept_unread: bool,
        /// The hypervisor; otherwise libvirt's default.
        connect: Option<String>,
    }
}

/// A machine that was made.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Defined {
    /// Its name.
    pub name: String,
    /// Its disks.
    pub disks: Vec<RestoredMember>,
    /// What the old one had and this one has not.
    pub left_out: Vec<String>,
}
