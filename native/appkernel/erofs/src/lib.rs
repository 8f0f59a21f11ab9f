//! Reader of EROFS images.
