//! What can be typed after `imgsnap requests`.

use clap::Subcommand;

#[derive(Subcommand)]
pub enum Requests {
    /// List requests, oldest first
    List,
    /// Carry out a request; requires the owner key
    Confirm {
        /// Id of the request, or a prefix of it (at least eight digits)
        request: String,
        /// Also confirm the removal of an image with all its snapshots
        #[arg(short, long)]
        yes: bool,
    },
    /// Reject a request, without dropping anything
    Reject {
        /// Id of the request, or a prefix of it
        request: String,
    },
}
