"""What tests share: builders, fakes and servers, typed and documented like the product."""
