//! What can be typed after `imgsnap requests`.

use clap::Subcommand;

#[derive(Subcommand)]
pub enum Requests {
    /// List them, the oldest first
    List,
    /// Drop what a request names, with the owner key
    Confirm {
        /// Its id, or the beginning of it, of eight digits at least
        request: String,
        /// Also a request to remove an image with all its snapshots
        #[arg(short, long)]
        yes: bool,
    },
    /// Take a request away, and drop nothing
    Reject {
        /// Its id, or the beginning of it
        request: String,
    },
}
