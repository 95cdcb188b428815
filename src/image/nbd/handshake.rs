//! The handshake: from a new connection to one on which an export can be read.

use super::protocol::{
    self, BlockSizes, ExportInfo, GREETING_MAGIC, Greeting, Info, MAX_OPTION_REPLY, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, OptionReply, greeting, info, option, reply,
};
use super::wire::{Fault, Peer, Wire};
use crate::base::error::{Error, ErrorKind};
use crate::base::message::{Action, message};
use crate::base::units::MAX_IMAGE_BYTES;
use zerocopy::IntoBytes;
use zerocopy::big_endian::U32;

/// The context that tells zeros from data.
const ALLOCATION: &str = "base:allocation";
/// How the context of a bitmap begins.
const BITMAP: &str = "qemu:dirty-bitmap:";
/// More replies to one option no server has.
const MAX_REPLIES: usize = 64;
/// The largest minimum block that the protocol allows.
const MAX_MINIMUM: u32 = 64 << 10;
/// What may be asked for at once of a server that does not say.
const DEFAULT_MAXIMUM: u32 = 32 << 20;

/// What a server says of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its length.
    pub bytes: u64,
    flags: u16,
    /// Requests begin and end at multiples of it, except at the end of the export.
    pub minimum: u32,
    /// No request has more payload.
    pub maximum: u32,
    /// Replies come in chunks.
    pub is_structured: bool,
    /// The id of `base:allocation` on this connection.
    pub allocation: Option<u32>,
    /// That of the bitmap.
    pub bitmap: Option<u32>,
}

impl Export {
    /// True if a flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The same whatever the connection calls its contexts.
    pub fn without_ids(&self) -> Self {
        let named = |id: Option<u32>| id.map(|_| 0);
        Self { allocation: named(self.allocation), bitmap: named(self.bitmap), ..self.clone() }
    }
}

/// Agrees with the server upon an export.
///
/// # Errors
/// `NotFound` without such an export or bitmap; `Auth`, `Unsupported`, `Unavailable` if the server refuses.
pub fn agree(wire: &mut Wire, peer: &Peer, bitmap: Option<&str>) -> Result<Export, Fault> {
    let hello: Greeting = wire.read_message(peer)?;
    if hello.magic.get() != GREETING_MAGIC {
        return Err(peer.violation("no NBD server answers"));
    }
    if hello.style.get() != OPTION_MAGIC {
        let what = format!("{}: the server supports only the old NBD handshake", peer.name);
        return Err(Error::new(ErrorKind::Unsupported, what).hint("use a newer server").into());
    }
    let flags = hello.flags.get() & (greeting::FIXED_NEWSTYLE | greeting::NO_ZEROES);
    wire.write(peer, U32::new(u32::from(flags)).as_bytes(), &[])?;
    let mut shake = Handshake { wire, peer };
    let mut export = Export {
        bytes: 0,
        flags: 0,
        minimum: 1,
        maximum: DEFAULT_MAXIMUM,
        is_structured: false,
        allocation: None,
        bitmap: None,
    };
    if flags & greeting::FIXED_NEWSTYLE == 0 {
        shake.export_name(flags, &mut export)?;
    } else {
        export.is_structured = shake.accepts(option::STRUCTURED_REPLY)?;
        if export.is_structured {
            shake.select_contexts(bitmap, &mut export)?;
        }
        if !shake.go(&mut export)? {
            shake.export_name(flags, &mut export)?;
        }
    }
    if let (Some(bitmap), None) = (bitmap, export.bitmap) {
        let what = format!("{} has no dirty bitmap \"{}\"", peer.name, bitmap.escape_debug());
        let hint = "export it with the image; \"nbdinfo\" lists the contexts of an export";
        return Err(Error::new(ErrorKind::NotFound, what).hint(hint).into());
    }
    check(export, peer)
}

/// Refuses what nothing can be made of.
fn check(export: Export, peer: &Peer) -> Result<Export, Fault> {
    let Export { bytes, minimum, maximum, .. } = export;
    if !minimum.is_power_of_two() || minimum > MAX_MINIMUM || maximum < minimum {
        let what = format!("block sizes from {minimum} to {maximum} bytes are impossible");
        return Err(peer.violation(what));
    }
    if bytes == 0 {
        let what = format!("{} is empty (0 bytes)", peer.name);
        return Err(Error::new(ErrorKind::InvalidInput, what).hint("name a disk").into());
    }
    if bytes > MAX_IMAGE_BYTES {
        let what = format!("{} has {bytes} bytes, more than 2^62", peer.name);
        return Err(Error::new(ErrorKind::LimitExceeded, what).into());
    }
    Ok(export)
}

struct Handshake<'a> {
    wire: &'a mut Wire,
    peer: &'a Peer,
}

impl Handshake<'_> {
    fn ask(&mut self, option: u32, data: &[u8]) -> Result<(), Fault> {
        self.wire.write(self.peer, &protocol::encode_option(option, data), &[])
    }

    /// The replies to an option, up to the last one, which is ACK or an error.
    fn replies(
        &mut self,
        option: u32,
        mut each: impl FnMut(u32, &[u8]) -> Option<()>,
    ) -> Result<u32, Fault> {
        for _ in 0..MAX_REPLIES {
            let head: OptionReply = self.wire.read_message(self.peer)?;
            let is_right = head.magic.get() == OPTION_REPLY_MAGIC && head.option.get() == option;
            if !is_right || head.bytes.get() > MAX_OPTION_REPLY {
                return Err(self.peer.violation("the reply to an option is none"));
            }
            let data = self.wire.read_bytes(self.peer, head.bytes.get())?;
            let kind = head.kind.get();
            if kind == reply::ACK || kind & reply::ERROR != 0 {
                return Ok(kind);
            }
            each(kind, &data)
                .ok_or_else(|| self.peer.violation("a reply to an option has another form"))?;
        }
        Err(self.peer.violation("the replies to an option have no end"))
    }

    fn accepts(&mut self, option: u32) -> Result<bool, Fault> {
        self.ask(option, &[])?;
        Ok(self.replies(option, |_, _| Some(()))? == reply::ACK)
    }

    /// A server that has none of them is no less a server.
    fn select_contexts(&mut self, bitmap: Option<&str>, export: &mut Export) -> Result<(), Fault> {
        let bitmap = bitmap.map(|name| format!("{BITMAP}{name}"));
        let wanted: Vec<&str> = [ALLOCATION].into_iter().chain(bitmap.as_deref()).collect();
        let (mut allocation, mut dirty) = (None, None);
        let option = option::SET_META_CONTEXT;
        self.ask(option, &protocol::encode_contexts(&self.peer.uri.export, &wanted))?;
        let last = self.replies(option, |kind, data| {
            if kind == reply::META_CONTEXT {
                let (id, name) = protocol::decode_context(data)?;
                if name == ALLOCATION.as_bytes() {
                    allocation = Some(id);
                } else if bitmap.as_deref().is_some_and(|bitmap| bitmap.as_bytes() == name) {
                    dirty = Some(id);
                }
            }
            Some(())
        })?;
        if allocation.is_some() && allocation == dirty {
            return Err(self.peer.violation("two metadata contexts have one id"));
        }
        if last == reply::ACK {
            (export.allocation, export.bitmap) = (allocation, dirty);
        }
        Ok(())
    }

    /// False if the server does not have this option.
    fn go(&mut self, export: &mut Export) -> Result<bool, Fault> {
        self.ask(option::GO, &protocol::encode_go(&self.peer.uri.export, &[info::BLOCK_SIZE]))?;
        let mut told: (Option<ExportInfo>, Option<BlockSizes>) = (None, None);
        let last = self.replies(option::GO, |kind, data| {
            if kind == reply::INFO {
                match Info::decode(data)? {
                    Info::Export(info) => told.0 = Some(info),
                    Info::BlockSizes(sizes) => told.1 = Some(sizes),
                    Info::Other => {}
                }
            }
            Some(())
        })?;
        match last {
            reply::ACK => {}
            reply::UNSUPPORTED => return Ok(false),
            other => return Err(self.refusal(other)),
        }
        let info = told
            .0
            .ok_or_else(|| self.peer.violation("it does not report the size of the export"))?;
        (export.bytes, export.flags) = (info.bytes.get(), info.flags.get());
        if let Some(sizes) = told.1 {
            (export.minimum, export.maximum) = (sizes.minimum.get(), sizes.maximum.get());
        }
        Ok(true)
    }

    /// The oldest option: a server that does not have the export hangs up.
    fn export_name(&mut self, flags: u16, export: &mut Export) -> Result<(), Fault> {
        self.ask(option::EXPORT_NAME, self.peer.uri.export.as_bytes())?;
        let info: ExportInfo = self.wire.read_message(self.peer).map_err(|fault| match fault {
            Fault::Lost(_) => self.refusal(reply::UNKNOWN),
            other => other,
        })?;
        if flags & greeting::NO_ZEROES == 0 {
            self.wire.read_bytes(self.peer, 124)?;
        }
        (export.bytes, export.flags) = (info.bytes.get(), info.flags.get());
        Ok(())
    }

    fn refusal(&self, reply: u32) -> Fault {
        let name = &self.peer.name;
        let (kind, what, hint) = match reply {
            reply::UNKNOWN => {
                let what = format!("there is no export {name}");
                (
                    ErrorKind::NotFound,
                    what,
                    "\"nbdinfo --list\" lists the exports of a server".into(),
                )
            }
            reply::TLS_REQUIRED => {
                let hint = "TLS is not supported; use a socket of this host, or a tunnel";
                (ErrorKind::Unsupported, format!("{name}: the server requires TLS"), hint.into())
            }
            reply::POLICY => {
                let what = format!("{name}: the server denies access");
                (ErrorKind::Auth, what, "check its configuration".into())
            }
            reply::SHUTDOWN => {
                let what = format!("{name}: the server is shutting down");
                (ErrorKind::Unavailable, what, message!["start it and ", Action::Retry])
            }
            other => {
                let number = other & !reply::ERROR;
                let what = format!("{name}: the server refuses the export (error {number})");
                (ErrorKind::Unsupported, what, "check its configuration".into())
            }
        };
        Error::new(kind, what).hint(hint).into()
    }
}
