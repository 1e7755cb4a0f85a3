# Login shells (terminals, SSH) find what the image brings and what people installed, like all other programs.
PATH=/opt/perijove/bin:$PATH:/home/work/.local/bin
